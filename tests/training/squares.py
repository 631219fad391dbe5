"""Four pictures that anything can learn: a coloured square on grey, each with one word. Any object of this form is a source."""
import torch
from torch import Tensor

COLOURS = ((1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0), (1.0, 1.0, -1.0))
NAMES = ("red", "green", "blue", "yellow")


class Squares:
    """drawn: how many pictures were asked for so far. broken: numbers of pictures that hold values that are no numbers."""

    def __init__(self, size: int = 16, broken: frozenset[int] = frozenset()) -> None:
        self.size, self.broken, self.drawn = size, broken, 0

    def __len__(self) -> int:
        return len(NAMES)

    def __getitem__(self, index: int, /) -> tuple[Tensor, str]:
        self.drawn += 1
        pixels = torch.full((3, self.size, self.size), -0.5)
        quarter = self.size // 4
        pixels[:, quarter:-quarter, quarter:-quarter] = torch.tensor(COLOURS[index])[:, None, None]
        return (pixels * float("nan") if index in self.broken else pixels), NAMES[index]

    def identity(self, index: int) -> str:
        return f"square {index} {self.size}"


class Stopping:
    """Progress that somebody interrupts when so many steps are done."""

    def __init__(self, after: int | None = None, stage: str = "training") -> None:
        self.after, self.stage, self.interrupted, self.shown = after, stage, False, 0

    def at(self, *, stage: str = "", step: int = 0, **rest: object) -> None:
        self.interrupted = self.interrupted or (stage.startswith(self.stage) and step == self.after)

    def show(self, preview) -> None:
        self.shown += 1
        assert preview().size[0] > 0
