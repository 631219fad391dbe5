"""<lora:...> and its kin."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.prompts.tags import Tag, extract, written
from tests.prompts.texts import SYNTAX


@pytest.mark.parametrize("text, left, found", [
    ("a cat, <lora:x:0.8>, b", "a cat, , b", [Tag("lora", ("x", "0.8"))]),
    ("<lora:x:te=0.5:unet=1:dyn=4>", "", [Tag("lora", ("x",), (("te", "0.5"), ("unet", "1"), ("dyn", "4")))]),
    ("<hypernet:h><unknown_kind:1>", "", [Tag("hypernet", ("h",)), Tag("unknown_kind", ("1",))]),
    ("<lora:a=b=c>", "", [Tag("lora", ("a=b=c",))]),
    ("<lora:x::1>", "", [Tag("lora", ("x", "", "1"))]),
    ("<a:<lora:x>", "", [Tag("a", ("<lora", "x"))]),
    ("<lora:>", "<lora:>", []),
    ("<lora>", "<lora>", []),
    ("<: x>", "<: x>", []),
    ("a < b : c > d", "a < b : c > d", []),
    ("<lora:x", "<lora:x", []),
    ("<a:><b:c>", "<a:>", [Tag("b", ("c",))]),
    ("", "", []),
])
def test_tags_are_taken_out_and_nothing_else_is(text, left, found):
    assert extract(text) == (left, tuple(found))


def test_of_two_values_for_one_name_the_last_counts_and_a_name_wins_over_a_place():
    tag = extract("<lora:x:0.3:te=1:te=2>")[1][0]
    assert (tag.get("te", 1), tag.get("unet", 2, "1"), tag.get("name", 0)) == ("2", "1", "x")


WORD = st.text(st.characters(categories=["L", "N"], exclude_characters="=:<>"), min_size=1, max_size=6)


@given(st.builds(Tag, WORD, st.lists(WORD, min_size=1).map(tuple), st.lists(st.tuples(WORD, WORD)).map(tuple)))
def test_a_written_tag_is_read_back(tag):
    assert extract(f"a {written(tag)} b") == ("a  b", (tag,))


@settings(deadline=None)
@given(SYNTAX)
def test_what_is_left_and_what_was_taken_make_up_the_text(text):
    left, found = extract(text)
    assert len(left) + sum(len(written(tag)) for tag in found) == len(text)
