"""Wildcards and variants: what may be chosen, how often, by which seed, and what stays as it is written."""
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.core.errors import PromptError
from modules.prompts import grammar
from modules.prompts.wildcards import Draw, Folder, Nothing, has_marks, resolve
from tests.prompts.test_linear import LARGE, SMALL, best

FILES = {
    "animals.txt": "\ufeff# pets\n\n  cat  \n# big\n{small|large} dog\n", "colours.txt": "red\nblue", "colours-dark.txt": "black",
    "places/cities.txt": "Paris\n__animals__ town", "itself.txt": "a __itself__ __itself__", "empty.txt": "# nothing\n\n",
    "open.txt": "{x", "latin.txt": b"caf\xe9", ".hidden.txt": "secret"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "wildcards"
    for name, text in FILES.items():
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Folder(home)


def all_of(text, source, seeds=200):
    return {resolve(text, source, seed) for seed in range(seeds)}


@pytest.mark.parametrize("text, words", [
    ("{a|b}", {"a", "b"}), ("x {a|} y", {"x a y", "x  y"}), ("{a|{b|c}}", {"a", "b", "c"}), ("{{a|b}|{c|d}}", {"a", "b", "c", "d"}),
    ("{2$$a|b|c}", {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}), ("{2$$ and $$a|b}", {"a and b", "b and a"}),
    ("{1-2$$a|b}", {"a", "b", "a, b", "b, a"}), ("{-1$$a}", {"", "a"}), ("{2-$$a|b}", {"a, b", "b, a"}), ("{9$$a|b}", {"a, b", "b, a"}),
    ("{2-1$$a|b}", {"a", "b", "a, b", "b, a"}), ("{0::a|b}", {"b"}), ("{2$$0::a|b}", {"b, a"}), ("{[a|b]|c}", {"[a|b]", "c"}),
    ("{[a|b}", {"[a", "b"}), ("__animals__", {"cat", "small dog", "large dog"}), ("__places/cities__", {"Paris", "cat town", "small dog town", "large dog town"}),
    ("__colours*__", {"red", "blue", "black"}), ("{2$$__colours__}", {"red, blue", "blue, red"}), ("(__colours__:1.2)", {"(red:1.2)", "(blue:1.2)"}),
    ("<lora:{a|b}:1>", {"<lora:a:1>", "<lora:b:1>"}), ("__open__ | y}", {r"\{x | y\}"}), ("{_|_}_name__", {r"\__name\__"}),
])
def test_every_choice_is_drawn_and_no_other(folder, text, words):
    assert all_of(text, folder) == words


@pytest.mark.parametrize("text", [
    "a cat", "{a}", "{", "}{", "a|b", "[a|b]", r"\{a|b\}", r"{a\|b}", "a__animals__b", "__no space here__", "____", "_animals_", r"\__animals__",
    "{prompt}", "__a____b__", "{{a}}", "$$", "{[a|b]}", "(a:1.2) {b"])
def test_text_without_a_choice_stays_as_it_is_written(text):
    assert resolve(text, Nothing(), 1) == text and not has_marks(text)


def test_what_a_backslash_hides_is_read_as_the_bare_sign():
    assert grammar.attention(resolve(r"\{a\|b\} \__name__", Nothing(), 1)) == (grammar.Piece("{a|b} __name__", 1.0),)


def test_a_weight_says_how_often():
    found = Counter(resolve("{3::a|b}", Nothing(), seed) for seed in range(4000))
    assert found["a"] / 4000 == pytest.approx(0.75, abs=0.03)
    lines = Counter(Draw(str(seed)).below(5) for seed in range(5000))
    assert all(abs(count - 1000) < 120 for count in lines.values())


def test_the_seed_chooses_alone_and_each_field_draws_for_itself():
    """SHA-256 of "prompt 7 1" begins with a byte that lies in the upper half of its range."""
    text = "{a|b|c|d|e|f|g|h}" * 4
    assert resolve(text, Nothing(), 5) == resolve(text, Nothing(), 5) != resolve(text, Nothing(), 6)
    assert resolve(text, Nothing(), 5, "negative_prompt") != resolve(text, Nothing(), 5)
    assert resolve("{a|b}", Nothing(), 7) == "ab"[int.from_bytes(__import__("hashlib").sha256(b"prompt 7 1").digest()[:8], "big") * 2 >> 64]


@pytest.mark.parametrize("text, words", [
    ("__anmals__", "__anmals__.*__animals__"), ("__nothing like it__ __zzz__", "__zzz__"), ("__../secret__", "There is no wildcard file"),
    ("__itself__", "hold itself"), ("__empty__", "no line"), ("__latin__", "not UTF-8"), ("__.hidden*__", "There is no"),
    ("{1$$" * 60 + "a" + "}" * 60, "deep")])
def test_what_cannot_be_chosen_gets_a_sentence(folder, text, words):
    with pytest.raises(PromptError, match=words):
        resolve(text, folder, 1)


def test_more_choices_than_any_prompt_has_are_refused():
    assert resolve("{a|}" * 10_000, Nothing(), 1).strip("a") == ""
    with pytest.raises(PromptError, match="times"):
        resolve("{a|}" * 21_000, Nothing(), 1)


PIECES = st.lists(st.sampled_from(["{", "}", "|", "a", "2$$", "1-$$", " and $$", "3::", "__colours__", "__", "_", "\\", "[", "]", "é ", "__open__"]),
                  max_size=40).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=PIECES, seed=st.integers(0, 2**64 - 1))
def test_what_was_chosen_has_nothing_left_to_choose(folder, text, seed):
    try:
        chosen = resolve(text, folder, seed)
    except PromptError as error:                            # "___colours__" names a file that is not there
        assert "There is no wildcard file" in str(error)
        return
    assert resolve(chosen, Nothing(), seed + 1) == chosen


UNITS = ("{", "}", "{a|", "-__a", "__a__ ", "\\", "[", "{[|", "]}", "{2$$", "{1::a|b}", "_", "|", "{[", "{}|", "2$$")


@pytest.mark.parametrize("unit", UNITS)
def test_time_grows_no_faster_than_the_text(unit):
    def run(text, seed=1):
        try:
            resolve(text, Nothing(), seed)
        except PromptError as error:
            assert re.match("There is no|The (field|wildcards)", str(error))

    large, small = best(run, (unit * LARGE)[:LARGE]), best(run, (unit * SMALL)[:SMALL])
    assert large <= 10 * small + 0.02
