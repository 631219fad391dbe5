"""The pictures that came in, by the SHA-256 of their pixels: written whole or not at all, never changed, kept for replays."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modules.core.errors import NotFoundError, RequestError
from modules.core.files import write_atomically
from modules.core.paths import safe_join
from modules.imaging import incoming

if TYPE_CHECKING:
    from PIL import Image

HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A picture in the store. notices: sentences for the user about what was left out of its file."""

    sha256: str
    width: int
    height: int
    notices: tuple[str, ...] = ()


class Inputs:
    """The store in one folder. Any thread may ask."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, file: bytes, what: str = "picture") -> Kept:
        """Put the picture in this file into the store. Equal pixels are kept once, whatever file they came in.

        what: how an error calls it. Raises ImageMetaError for a file that cannot be used, SaveError when there is no room.
        """
        return self._keep(incoming.read(file, what))

    def _keep(self, found: incoming.Incoming) -> Kept:
        sha256 = found.sha256
        path = self._path(sha256)
        if not path.is_file():
            write_atomically(path, found.png())
        return Kept(sha256=sha256, width=found.image.width, height=found.image.height, notices=found.notices)

    def keep_drawn(self, file: bytes, layers: Sequence[bytes], *, mask: bool, colours: bool) -> tuple[Kept, Kept | None]:
        """A picture and what was drawn over it, as layers that are transparent elsewhere, bottom first.

        mask: what was drawn on becomes the mask, None when that is nothing. colours: the strokes become part of the picture.
        """
        found = incoming.read(file)
        strokes = incoming.flat([incoming.read(layer, "drawing").image for layer in layers], found.image.size)
        if strokes is None:
            return self._keep(found), None
        painted = incoming.over(found, strokes) if colours else found
        return self._keep(painted), self._keep(incoming.drawn_on(strokes)) if mask else None

    def file(self, sha256: str, what: str = "picture") -> Path:
        """Where it lies, a PNG. Raises NotFoundError when it is not here."""
        path = self._path(sha256)
        if not path.is_file():
            raise NotFoundError(f"The {what} {sha256[:10]}… that this request begins from is not here any more; give it again.")
        return path

    def image(self, sha256: str) -> Image.Image:
        """RGB or RGBA. Raises NotFoundError, and ImageMetaError when the file was damaged."""
        return incoming.read(self.file(sha256).read_bytes()).image

    def _path(self, sha256: str) -> Path:
        if len(sha256) != 64 or not set(sha256) <= HEX:
            raise RequestError("A picture in the store is named by 64 hexadecimal digits.", field="image")
        return safe_join(self._folder, sha256[:2], f"{sha256}.png")
