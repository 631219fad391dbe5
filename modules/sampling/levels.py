"""Noise levels as a text has them. Without torch."""
from __future__ import annotations

from modules.core.errors import ScheduleError

MOST_STEPS = 10_000                                         # beyond this a ladder is a mistake, not a wish
PARTING = str.maketrans("[](),;", "      ")


def levels_of(text: str) -> tuple[float, ...]:
    """The noise levels in a text such as "14.6, 7.3, 2.1, 0"; brackets, commas and blanks part them. Raises ScheduleError."""
    words = text.translate(PARTING).split()
    try:
        return tuple(float(word) for word in words[:MOST_STEPS + 2])
    except ValueError:
        raise ScheduleError("Noise levels are numbers with commas between them, such as 14.6, 7.3, 2.1, 0.") from None
