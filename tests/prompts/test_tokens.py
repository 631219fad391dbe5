"""The vocabulary against transformers' tokeniser, and how 75-token chunks are filled."""
import gzip
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.core.errors import NotFoundError, PromptError, RequestError, WebUIError
from modules.prompts import tokens
from modules.prompts.tokens import END, START, Tokenizer, chunks, count
from tests.prompts.texts import SYNTAX

RANDOM = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SCRIPTS = st.text(st.one_of(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E), st.characters(min_codepoint=0x4E00, max_codepoint=0x4E40),
    st.characters(min_codepoint=0x590, max_codepoint=0x6FF), st.characters(min_codepoint=0x1F600, max_codepoint=0x1F64F),
    st.characters(min_codepoint=0x300, max_codepoint=0x310), st.sampled_from("ÅÅΣςſßİIıﬁ①²½'’\u3000\u0085\u200d\u00a0\n\t ")), max_size=40)


@pytest.fixture(scope="module")
def oracle():
    """transformers' CLIP tokeniser over the same vocabulary."""
    from transformers import CLIPTokenizer
    vocabulary, merges = tokens.read_vocabulary(tokens.vocabulary_file())
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def ids_of(oracle, text):
    return oracle(text, add_special_tokens=False, truncation=False)["input_ids"]


@pytest.mark.parametrize("text, ids", [
    ("a photo of a cat", [320, 1125, 539, 320, 2368]),
    ("A Photo  of\na CAT", [320, 1125, 539, 320, 2368]),
    (",", [267]),
    ("<|endoftext|>", [END]),
    ("", []),
    ("   ", []),
])
def test_known_texts_have_the_published_ids(tokenizer, text, ids):
    assert tokenizer.ids(text) == ids


def test_the_vocabulary_has_49408_tokens_and_its_marks_at_the_end():
    vocabulary, merges = tokens.read_vocabulary(tokens.vocabulary_file())
    assert len(vocabulary) == 49408 and len(merges) == 48894
    assert vocabulary["<|startoftext|>"] == START and vocabulary["<|endoftext|>"] == END and vocabulary["!"] == 0


@settings(max_examples=300, deadline=None)
@given(st.one_of(RANDOM, SCRIPTS, SYNTAX, st.lists(st.sampled_from(
    ["it's", "we'll", "I'D", "don't", "o'clock", "3.14", "2024", "x2", "naïve",
     "e\u0301", "<|startoftext|>", "<|ENDOFTEXT|>", "'", "--", " "])
).map("".join)))
def test_ids_equal_those_of_transformers(tokenizer, oracle, text):
    assert tokenizer.ids(text) == ids_of(oracle, text)


def test_a_word_of_64_kib_is_tokenised(tokenizer):
    assert len(tokenizer.ids("ab" * 32_768)) > 1000


def test_finding_and_building_the_tokeniser_imports_neither_open_clip_nor_torch_nor_transformers():
    code = ("import sys; from modules.prompts import tokens; tokens.count('a cat', tokens.Tokenizer()); "
            "print({'open_clip', 'torch', 'transformers', 'gradio'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_a_missing_vocabulary_is_one_sentence_with_what_to_do(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotFoundError, match="pip install open-clip-torch"):
        Tokenizer()


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"version\na b\n", mtime=0), gzip.compress(b"\xff\xfe", mtime=0), b""])
def test_a_damaged_vocabulary_is_one_sentence_with_what_to_do(tmp_path, content):
    (tmp_path / "words.gz").write_bytes(content)
    with pytest.raises(NotFoundError, match="pip install open-clip-torch"):
        Tokenizer(tmp_path / "words.gz")


# ---- chunks: "a" is one token, "," is the comma token

def used(text, tokenizer, **options):
    return [chunk.used for chunk in chunks(text, tokenizer, **options)]


@pytest.mark.parametrize("text, expected", [
    ("", [0]),
    ("a " * 75, [75]),
    ("a " * 76, [75, 1]),
    ("a BREAK b", [1, 1]),
    ("(a BREAK b:1.2)", [3]),
    ("a BREAK BREAK b", [1, 0, 1]),
    ("BREAK a", [0, 1]),
    ("a BREAK", [1]),
    ("a " * 75 + "BREAK a", [75, 1]),
    ("a " * 70 + ", " + "a " * 9, [71, 9]),
    ("a " * 54 + ", " + "a " * 25, [75, 5]),                # the comma stands 21 tokens before the end
    ("a " * 55 + ", " + "a " * 24, [56, 24]),               # 20 tokens
    ("a " * 74 + ", a", [75, 1]),
    ("a " * 75 + ", a", [75, 2]),                           # a comma itself does not push the phrase away
    ("a, " * 80, [75, 75, 10]),                             # a comma may open a chunk
])
def test_chunks_are_filled_as_the_table_says(tokenizer, text, expected):
    assert used(text, tokenizer) == expected


def test_comma_backtracking_can_be_turned_off_or_widened(tokenizer):
    text = "a " * 40 + ", " + "a " * 40
    assert used(text, tokenizer, comma_padding_backtrack=0) == [75, 6]
    assert used(text, tokenizer, comma_padding_backtrack=20) == [75, 6]
    assert used(text, tokenizer, comma_padding_backtrack=35) == [41, 40]


def test_a_comma_that_opens_a_chunk_is_not_gone_back_to(tokenizer):
    """It was seen while the chunk before was still open."""
    assert used("a " * 75 + ", " + "a " * 80, tokenizer, comma_padding_backtrack=75) == [75, 75, 6]


def test_a_chunk_is_start_text_end_and_its_padding_is_the_towers(tokenizer):
    chunk, = chunks("a (cat:1.5)", tokenizer)
    assert chunk.ids[:4] == (START, 320, 2368, END) and set(chunk.ids[4:]) == {END} and len(chunk.ids) == 77
    assert chunk.weights[:4] == (1, 1, 1.5, 1) and set(chunk.weights[4:]) == {1.0} and len(chunk.weights) == 77
    assert chunk.padded(END) == chunk.ids
    assert chunk.padded(0)[:4] == chunk.ids[:4] and set(chunk.padded(0)[4:]) == {0}


def test_what_moves_behind_a_comma_takes_its_weights_along(tokenizer):
    first, second = chunks("a " * 60 + ", " + "(" + "a " * 20 + ":1.5)", tokenizer)
    assert first.used == 61 and set(first.weights) == {1.0}
    assert second.used == 20 and second.weights[1:21] == (1.5,) * 20 and second.weights[21:] == (1.0,) * 56


def test_every_piece_is_tokenised_alone(tokenizer):
    assert chunks("(sun)flower", tokenizer)[0].ids[1:3] == (*tokenizer.ids("sun"), *tokenizer.ids("flower"))
    assert tokenizer.ids("sunflower") != [*tokenizer.ids("sun"), *tokenizer.ids("flower")]


def test_emphasis_none_reads_brackets_and_break_as_words(tokenizer):
    chunk, = chunks("(a:1.1) BREAK b", tokenizer, emphasis="None")
    assert list(chunk.ids[1:1 + chunk.used]) == tokenizer.ids("(a:1.1) break b")
    assert chunk.plain


def test_an_unknown_emphasis_is_refused_with_the_ones_that_exist(tokenizer):
    with pytest.raises(RequestError, match="No norm") as caught:
        chunks("a", tokenizer, emphasis="Loud")
    assert caught.value.field == "emphasis"


@settings(max_examples=100, deadline=None)
@given(SYNTAX, st.sampled_from(tokens.EMPHASIS), st.integers(0, 80))
def test_any_text_gives_chunks_of_77_that_hold_every_token_once(tokenizer, text, emphasis, backtrack):
    try:
        found = chunks(text, tokenizer, emphasis=emphasis, comma_padding_backtrack=backtrack)
    except WebUIError as error:
        assert isinstance(error, PromptError) and "\0" in text
        return
    assert all(len(chunk.ids) == len(chunk.weights) == 77 and chunk.ids[0] == START and chunk.ids[-1] == END for chunk in found)
    pieces = [(text, 1)] if emphasis == "None" else [piece for piece in tokens.grammar.attention(text) if piece != tokens.grammar.BREAK]
    assert [i for chunk in found for i in chunk.ids[1:1 + chunk.used]] == [i for piece, _ in pieces for i in tokenizer.ids(piece)]


@pytest.mark.parametrize("text, options, expected", [
    ("", {}, (0, 75)),
    ("a cat", {}, (2, 75)),
    ("a " * 75, {}, (75, 75)),
    ("a " * 76, {}, (76, 150)),
    ("a BREAK b", {}, (76, 150)),
    ("a cat <lora:x:1> # not seen", {}, (2, 75)),
    ("a cat <lora:x:1>", {"negative": True}, (10, 75)),
    ("a AND a cat", {}, (2, 75)),
    ("a AND a cat", {"negative": True}, (4, 75)),
    ("[a:a b c:10] d", {}, (4, 75)),
    ("(a:1.3)", {}, (1, 75)),
    ("(a:1.3)", {"emphasis": "None"}, (7, 75)),
])
def test_the_counter_shows_the_longest_part_at_its_longest_step(tokenizer, text, options, expected):
    assert count(text, tokenizer, **options) == expected
