"""A piece of a prompt as numbers, of the length that a text encoder takes at once."""
from __future__ import annotations

from dataclasses import dataclass

from modules.prompts.learned import Learned

END = 49407                                                 # of CLIP


@dataclass(frozen=True)
class Chunk:
    """Ids with a weight for each: start, up to 75 tokens of text, end, 77 in all. Padding is written as end tokens, its weight is 1.

    end: None where nothing is padded, and every id is text. learned: (place, word, row) of each place whose id, a 0, stands for a vector.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    used: int = 0                                           # tokens of text
    end: int | None = END
    learned: tuple[tuple[int, Learned, int], ...] = ()

    def padded(self, pad_id: int) -> tuple[int, ...]:
        """The ids as a tower wants them: pad_id behind the first end token."""
        if self.end is None:
            return self.ids
        first_end = self.ids.index(self.end)
        return self.ids[:first_end + 1] + (pad_id,) * (len(self.ids) - first_end - 1)

    @property
    def plain(self) -> bool:
        return all(weight == 1 for weight in self.weights)
