"""Schedules, alternation, which text at which call, and the program of a whole prompt."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.core.errors import PromptError
from modules.prompts import timeline
from modules.prompts.timeline import at, program, schedule
from tests.prompts.texts import SYNTAX


@pytest.mark.parametrize("text, entries", [
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", [(n, "a" if n % 2 else "(b:1.1)") for n in range(1, 11)]),
    ("[fe|||]male", [(n, "female" if n % 4 == 1 else "male") for n in range(1, 11)]),
    ("[from:to:4]", [(4, "from"), (10, "to")]),
    ("[from::4]", [(4, "from"), (10, "")]),
    ("[a:b:1]", [(1, "a"), (10, "b")]),
    ("[a:b:1.0]", [(10, "a")]),
    ("[a:b:0]", [(10, "b")]),
    ("[a:b:-3]", [(10, "b")]),
    ("[a:b:99]", [(10, "a")]),
    ("[a:b:1e999]", [(10, "a")]),
    ("[a:b: 2e0 ]", [(2, "a"), (10, "b")]),
    ("(x [a:b:3]:1.2)", [(3, "(x a:1.2)"), (10, "(x b:1.2)")]),
    ("[[a|b]:c:2]", [(1, "a"), (2, "b"), *((n, "c") for n in range(3, 11))]),
    (r"\[a:b:3\] [c:2]", [(2, r"\[a:b:3\] "), (10, r"\[a:b:3\] c")]),
    (r"[a\:b:c:3]", [(3, r"a\:b"), (10, "c")]),
    ("", [(10, "")]),
])
def test_schedules_are_as_the_table_says(text, entries):
    assert list(schedule(text, 10)) == entries


@pytest.mark.parametrize("text", ["a | b [c:3]", "(a|b) [c:3]", "[a|b:3] [c:3]", "[a|b [c:3]", "[c:3] \\"])
def test_text_outside_the_grammar_stands_for_every_step(text):
    assert schedule(text, 10) == ((10, text),)


@pytest.mark.parametrize("text, entries", [
    ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
    ("[a:b]", [(10, "[a:b]")]),
    ("[a:b:1.2.3]", [(10, "[a:b:1.2.3]")]),
    ("[a:b:e]", [(10, "[a:b:e]")]),
    ("[a:b:]", [(10, "[a:b:]")]),
    ("[a:b:٣]", [(10, "[a:b:٣]")]),
    ("a:b [c:2]", [(2, "a:b "), (10, "a:b c")]),
    ("[a:[b:c:3]]", [(3, "[a:b]"), (10, "[a:c]")]),
    ("(a [b:c:3]", [(3, "(a b"), (10, "(a c")]),
    ("(a:b:c [d:3])", [(3, "(a:b:c )"), (10, "(a:b:c d)")]),
])
def test_a_bracket_without_meaning_is_text_and_what_lies_inside_keeps_its_own(text, entries):
    assert list(schedule(text, 10)) == entries


@pytest.mark.parametrize("text, entries", [
    ("a [b:.5] c", [(10, "a b c")]),
    ("a [b:1.5] c", [(5, "a  c"), (10, "a b c")]),
    ("[a:b:1.0]", [(10, "b")]),
    ("[a:b:13]", [(3, "a"), (10, "b")]),
    ("[a:b:8]", [(10, "b")]),
])
def test_in_a_second_pass_fractions_count_from_one_and_steps_go_on(text, entries):
    assert list(schedule(text, 10, hires_after=10)) == entries


@pytest.mark.parametrize("text, hires_after, entries", [
    ("[a:b:0.5]", None, [(10, "a"), (20, "b")]),
    ("[a:b:1.0]", None, [(1, "a"), (20, "b")]),
    ("[a:b:7.9]", None, [(7, "a"), (20, "b")]),
    ("[a:b:0.5]", 8, [(4, "a"), (8, "b")]),
])
def test_the_old_rule_takes_numbers_below_one_as_fractions_and_the_first_pass_for_both(text, hires_after, entries):
    assert list(schedule(text, 20, hires_after=hires_after, old=True)) == entries


def test_half_of_twenty_euler_steps_is_eleven_calls_and_of_heun_twenty_one():
    """An entry that ends at 10 serves the calls 0 to 10."""
    for calls, firsts in ((20, 11), (40, 21)):
        times = schedule("[a:b:0.5]", calls)
        assert [at(times, call) for call in range(calls)] == ["a"] * firsts + ["b"] * (calls - firsts)


def test_a_call_beyond_the_last_end_keeps_the_last_text():
    assert at(schedule("[a:b:3]", 10), 500) == "b"


@settings(max_examples=300, deadline=None)
@given(SYNTAX, st.integers(1, 30), st.none() | st.integers(1, 30), st.booleans())
def test_any_text_has_a_schedule_whose_ends_rise_to_the_last_call(text, calls, hires_after, old):
    times = schedule(text, calls, hires_after=hires_after, old=old)
    ends = [end for end, _ in times]
    assert ends == sorted(set(ends)) and ends[0] >= 1
    assert ends[-1] == (hires_after if old and hires_after else calls)


@settings(deadline=None)
@given(st.recursive(st.sampled_from(["a", "b c", "", "(d:1.1)", "\\["]), lambda inner: st.one_of(
    st.tuples(inner, inner, st.integers(1, 9)).map(lambda t: f"[{t[0]}:{t[1]}:{t[2]}]"),
    st.tuples(inner, inner, inner).map("|".join).map("[{}]".format),
    st.tuples(inner, inner).map("".join)), max_leaves=12), st.integers(1, 9))
def test_what_a_step_shows_is_what_reading_the_nest_by_hand_shows(text, step):
    assert at(schedule(text, 9), step) == _by_hand(text, step)


def _by_hand(text, step):
    """The innermost construct is resolved first, again and again: slow, and another road to the same text."""
    text = text.replace("\\[", "<").replace("(d:1.1)", ">")
    while (close := text.find("]")) >= 0:
        begin = text.rindex("[", 0, close)
        inside = text[begin + 1:close]
        if "|" in inside:
            options = inside.split("|")
            chosen = options[(step - 1) % len(options)]
        else:
            before, after, when = inside.split(":")
            chosen = before if step <= int(when) else after
        text = text[:begin] + chosen + text[close + 1:]
    return text.replace("<", "\\[").replace(">", "(d:1.1)")


@pytest.mark.parametrize("text", ["[" * 10_000, "[a:" * 10_000 + "b" + ":3]" * 10_000, "(" * 10_000 + "[a|b]" + ")" * 10_000, "[|" * 10_000,
                                  "([" * 5_000 + "a" + "])" * 5_000, "[a:b:3]" * 9_000])
def test_ten_thousand_brackets_are_scheduled_without_recursion(text):
    assert schedule(text, 20)[-1][0] == 20


def test_a_program_holds_each_part_of_and_with_its_weight_and_schedule():
    found = program("[cat:dog:2] :1.5 AND [a|b]", "x AND [y:1]", 4)
    assert [part.weight for part in found.parts] == [1.5, 1]
    assert found.at(2) == (((1.5, "cat"), (1, " b")), "x AND y")
    assert found.at(3) == (((1.5, "dog"), (1, " a")), "x AND y")
    assert found.texts == {"cat", "dog", " a", " b", "x AND ", "x AND y"}
    assert found == program("[cat:dog:2] :1.5 AND [a|b]", "x AND [y:1]", 4)


@pytest.mark.parametrize("prompt, negative, field", [
    ("a" * 70_000, "", "prompt"), ("", "a" * 70_000, "negative_prompt"), ("\udc00", "", "prompt"), ("a AND " * 200, "", "prompt")])
def test_a_program_refuses_what_cannot_be_encoded_and_names_the_field(prompt, negative, field):
    with pytest.raises(PromptError) as caught:
        program(prompt, negative, 20)
    assert caught.value.field == field


def test_the_last_end_is_the_number_of_calls_even_for_one():
    assert schedule("[a|b]", 1) == ((1, "a"),)
    assert timeline.index(((1, "a"),), 7) == 0
