"""The attention table, BREAK, AND and comments."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.core.errors import PromptError
from modules.prompts import grammar
from modules.prompts.grammar import BREAK, attention, split_and, without_comments
from tests.prompts.texts import SYNTAX


@pytest.mark.parametrize("text, pieces", [
    ("normal text", [("normal text", 1)]),
    ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
     [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)]),
    ("((a:1.3))", [("a", 1.43)]),
    ("[a]", [("a", 1 / 1.1)]),
    ("[a:1.2]", [("a:1.2", 1 / 1.1)]),
    ("(a:-1)", [("a", -1)]),
    ("(a:0)b", [("a", 0), ("b", 1)]),
    ("(a: + .5 )", [("a: + .5 ", 1.1)]),
    ("(a: +.5 )", [("a", 0.5)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
    ("a) b] c:2)", [("a) b] c:2)", 1)]),
    ("back\\slash \\\\ end\\", [("backslash \\ end", 1)]),
    ("", [("", 1)]),
    ("()", [("", 1)]),
])
def test_weights_are_as_the_table_says(text, pieces):
    found = attention(text)
    assert [piece.text for piece in found] == [piece[0] for piece in pieces]
    assert [piece.weight for piece in found] == pytest.approx([piece[1] for piece in pieces], rel=1e-9)


@pytest.mark.parametrize("number", ["1.2.3", ".", "..", "+", "9" * 400, "1e3", ""])
def test_a_number_that_is_none_is_text(number):
    assert attention(f"(a:{number})") == ((f"a:{number}", 1.1),)


@pytest.mark.parametrize("text, expected", [
    ("a BREAK b", ["a", BREAK, "b"]),
    ("a  \n BREAK\t BREAK b", ["a", BREAK, BREAK, "b"]),
    ("aBREAK b BREAK_ break", ["aBREAK b BREAK_ break"]),
    ("(a BREAK b:1.2)", ["a BREAK b"]),
    ("(a BREAK b:1.0) c", ["a", BREAK, "b c"]),
    ("(a) BREAK (b)", ["a", BREAK, "b"]),
])
def test_break_counts_as_a_word_of_its_own_where_the_weight_is_one(text, expected):
    assert [piece if piece == BREAK else piece.text for piece in attention(text)] == expected


@pytest.mark.parametrize("text, parts", [
    ("cat :1.5 AND dog", [("cat", 1.5), (" dog", 1)]),
    ("cat : 1.2", [("cat", 1.2)]),
    ("a AND b:-.5 AND c:1.", [("a", 1), (" b", -0.5), (" c", 1)]),
    ("SAND AND ANDY and", [("SAND", 1), (" ANDY and", 1)]),
    ("a:1:2", [("a:1", 2)]),
    ("(a:1.2)", [("(a:1.2)", 1)]),
    ("a:1.2.3 AND b:. AND", [("a:1.2.3", 1), (" b:.", 1), ("", 1)]),
    ("", [("", 1)]),
])
def test_and_splits_and_takes_the_weight_behind_the_last_colon(text, parts):
    assert list(split_and(text)) == parts


@pytest.mark.parametrize("text, left", [
    ("# x\ncat # y, dog", "\ncat \n"),
    ("a\n# x\nb", "a\nb"),
    ("C# code", "C\n"),
    ("a\n# x\n# y\nb", "a\n\nb"),
    ("no comment", "no comment"),
    ("#", "\n"),
    ("", ""),
])
def test_comments_go_as_the_table_says(text, left):
    assert without_comments(text) == left


@pytest.mark.parametrize("text, word", [("x" * 65537, "65,537"), ("é" * 32769, "65,538"), ("a\ud800", "surrogate"), ("a\0b", "NUL")])
def test_text_that_no_model_could_read_is_refused_with_its_field(text, word):
    with pytest.raises(PromptError, match=word) as caught:
        grammar.check(text, "negative_prompt")
    assert caught.value.field == "negative_prompt"


def test_64_kib_exactly_pass_the_check():
    assert grammar.check("é" * 32768) == "é" * 32768


@settings(max_examples=300, deadline=None)
@given(SYNTAX)
def test_any_text_gives_finite_pieces_and_no_exception(text):
    pieces = attention(text)
    assert pieces
    for piece, following in zip(pieces, (*pieces[1:], BREAK), strict=True):
        assert piece == BREAK or abs(piece.weight) <= grammar.HEAVIEST
        assert piece == BREAK or piece.weight != following.weight, "neighbours of equal weight are one piece"
    assert split_and(text)
    assert "#" not in without_comments(text)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="\\", exclude_categories=["Cs"])).filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_literal_text(text):
    escaped = "".join("\\" + c if c in "()[]" else c for c in text)
    assert attention(escaped) == ((text, 1.0),)


@pytest.mark.parametrize("text", ["(" * 10_000, "[" * 10_000 + "a" + "]" * 10_000, "(" * 10_000 + "a:0" + ")" * 10_000, ")(" * 10_000,
                                  "([" * 5_000 + "a" + ")]" * 5_000])
def test_ten_thousand_brackets_are_read_without_recursion(text):
    assert all(abs(piece.weight) <= grammar.HEAVIEST for piece in attention(text))
