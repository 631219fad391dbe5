"""Four times the text takes about four times the time, whatever the text: a quadratic scanner would take sixteen times."""
import gc
import time

import pytest

from modules.prompts import grammar, tags, timeline

SMALL, LARGE = 16_000, 64_000
TEXTS = {
    "open round": "(", "open square": "[", "open tag": "<a:", "colons and spaces": ": ", "spaces": " ", "digits": ":1",
    "bars": "[|",
    "pairs": "([a])", "breaks": "BREAK ", "spaces and breaks": " " * 50 + "BREAK", "ands": "AND ", "towers": "TE2 ", "comments": "\n#", "hashes": "#",
    "schedules": "[a:b:3]", "nested": "[a:", "crossed": "([a)]",
    "backslashes": "\\", "closers": ")]", "empty tags": "<a:>", "tags": "<a:b=c>"}


def best(function, text):
    """The shortest of three runs, in seconds of this process; the collector, whose work grows with all other tests, rests."""
    taken = []
    gc.disable()
    try:
        for _ in range(3):
            begin = time.process_time()
            function(text)
            taken.append(time.process_time() - begin)
    finally:
        gc.enable()
    return min(taken)


@pytest.mark.parametrize("function", [
    grammar.attention, grammar.split_and, grammar.split_towers, grammar.without_comments, tags.extract,
    lambda text: timeline.schedule(text, 4),
], ids=["attention", "and", "towers", "comments", "tags", "schedule"])
@pytest.mark.parametrize("unit", TEXTS.values(), ids=TEXTS)
def test_time_grows_no_faster_than_the_text(function, unit):
    large = best(function, (unit * LARGE)[:LARGE])
    small = best(function, (unit * SMALL)[:SMALL])
    assert large <= 10 * small + 0.01, f"{small:.4f} s for {SMALL} characters, {large:.4f} s for {LARGE}"


@pytest.mark.parametrize("before, after", [
    ("[a:" * 8000, "b" + ":3]" * 8000), ("(" * 16000, "a" + ")" * 16000), ("[" * 16000, "a|b" + "]" * 16000)])
def test_deep_nesting_costs_no_more_than_length(before, after):
    for function in (grammar.attention, lambda text: timeline.schedule(text, 4)):
        large = best(function, before + after)
        small = best(function, before[:len(before) // 4] + after[:1 + len(after) // 4])
        assert large <= 10 * small + 0.01
