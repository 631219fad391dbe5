"""Words to numbers: the byte-pair vocabulary of CLIP, and chunks of 75 tokens with a weight for each.

Sennrich et al. 2016, arXiv:1508.07909 (byte pairs); Radford et al. 2021, arXiv:2103.00020 (the vocabulary). No torch here.
"""
from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from modules.core.errors import NotFoundError, RequestError
from modules.prompts import grammar, tags, timeline
from modules.prompts.chunk import END, Chunk
from modules.prompts.learned import Learned, Words
from modules.prompts.vocabularies import BERT, CLIP, WordPieces, marks

EMPHASIS = ("Original", "No norm", "Ignore", "None")
START = 49406
CHUNK = 75                                                  # tokens of text; start and end make 77
MERGES = 48894                                              # of the published file only so many are used
VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"

# One word is: a special mark, an English ending, letters, one digit, or other signs.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def vocabulary_file() -> Path:
    """The vocabulary inside the open-clip-torch package, found without importing it. Raises NotFoundError."""
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / VOCABULARY_FILE
        if file.is_file():
            return file
    raise NotFoundError("The CLIP vocabulary is missing; install it with: pip install open-clip-torch")


def read_vocabulary(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges in order): 256 bytes, the same at a word's end, 48,894 merges, 2 marks = 49,408 tokens.

    Raises NotFoundError if the file is not the published vocabulary.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            pairs = [line.split() for line in islice(lines, 1, 1 + MERGES)]              # line 0 names the version
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise NotFoundError(f"The CLIP vocabulary {file} cannot be read; install it again: pip install open-clip-torch") from error
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) != MERGES:
        raise NotFoundError(f"The CLIP vocabulary {file} is damaged; install it again: pip install open-clip-torch")
    letters = _byte_letters()
    names = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    return {name: number for number, name in enumerate(names)}, merges


def _byte_letters() -> list[str]:
    """A visible character for each byte, in the vocabulary's order: the visible Latin-1 ones, then the others from U+0100."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in visible] + [chr(256 + n) for n in range(256 - len(visible))]


class Tokenizer:
    """CLIP's tokeniser. Holds the vocabulary (some 10 MB), so make one and hand it on. Safe in threads."""

    def __init__(self, file: Path | None = None) -> None:
        vocabulary, merges = read_vocabulary(file or vocabulary_file())
        bpe = tokenizers.models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
        self._bpe = tokenizers.Tokenizer(bpe)
        self._bpe.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False)])
        self._bpe.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
        self.comma = vocabulary[",</w>"]

    def ids(self, text: str) -> list[int]:
        """Token ids of any length, without start and end. The text must have passed `grammar.check`."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    @cached_property
    def word_pieces(self) -> WordPieces:
        """BERT's tokeniser, read when it is first asked for. Raises NotFoundError."""
        return WordPieces()

    def words(self, ids: list[int]) -> list[str]:
        """The vocabulary's names of these ids, such as "cat</w>"."""
        return [self._bpe.id_to_token(number) or "" for number in ids]


def chunks(text: str, tokenizer: Tokenizer, *, emphasis: str = "Original", comma_padding_backtrack: int = 20,
           vocabulary: str = CLIP, words: Words | None = None) -> tuple[Chunk, ...]:
    """The text in chunks of 75 tokens, at least one; for an encoder of another vocabulary than CLIP's in a single one.

    emphasis: one of EMPHASIS; under "None" brackets and BREAK are words like any other.
    comma_padding_backtrack: where a full chunk would cut a phrase, what follows a comma at most so many tokens back
    moves on; 0 = off. words: learned ones, each put in whole for the tokens that spell it.
    Raises RequestError for an unknown emphasis, PromptError for text that cannot be read.
    """
    pieces = _pieces(text, emphasis)
    if vocabulary == BERT:
        return (tokenizer.word_pieces.chunk(text, literally=emphasis == "None"),)
    if vocabulary != CLIP:
        return (marks(vocabulary, text),)
    writer = _Writer(tokenizer.comma, comma_padding_backtrack)
    for piece in pieces:
        if piece == grammar.BREAK:
            writer.turn()
            continue
        for token in _tokens(tokenizer.ids(piece.text), words):
            writer.add(token, piece.weight)
    return writer.finished()


def learned_in(text: str, tokenizer: Tokenizer, words: Words | None, emphasis: str = "Original") -> tuple[Learned, ...]:
    """The learned words in a text, each once, in their order. Raises as `chunks`."""
    if not words:
        return ()
    pieces = (piece for piece in _pieces(text, emphasis) if piece != grammar.BREAK)
    found = (token for piece in pieces for token in _tokens(tokenizer.ids(piece.text), words) if not isinstance(token, int))
    return tuple({word.name: word for word in found}.values())


def _pieces(text: str, emphasis: str) -> tuple[grammar.Piece, ...]:
    if emphasis not in EMPHASIS:
        raise RequestError(f"Emphasis “{emphasis}” does not exist; use one of: {', '.join(EMPHASIS)}.", "emphasis")
    grammar.check(text)
    return (grammar.Piece(text, 1.0),) if emphasis == "None" else grammar.attention(text)


def _tokens(ids: list[int], words: Words | None) -> Iterator[int | Learned]:
    """The ids with learned words for those that spell one."""
    if not words:
        yield from ids
        return
    place = 0
    while place < len(ids):
        found = words.at(ids, place)
        yield ids[place] if found is None else found[0]
        place += 1 if found is None else found[1]


class _Writer:
    """The chunk being filled, and where its last comma stands."""

    def __init__(self, comma: int, backtrack: int) -> None:
        self.comma, self.backtrack = comma, backtrack
        self.full: list[Chunk] = []
        self.ids: list[int | tuple[Learned, int]] = []      # a token, or a row of a learned word
        self.weights: list[float] = []
        self.last_comma = -1

    def add(self, token: int | Learned, weight: float) -> None:
        if token == self.comma:
            self.last_comma = len(self.ids)
        elif len(self.ids) == CHUNK and 0 <= self.last_comma and CHUNK - self.last_comma <= self.backtrack:
            cut = self.last_comma + 1
            ids, weights = self.ids[cut:], self.weights[cut:]
            del self.ids[cut:], self.weights[cut:]
            self.turn()
            self.ids, self.weights = ids, weights
        rows = [token] if isinstance(token, int) else [(token, row) for row in range(token.count)]
        if len(self.ids) + len(rows) > CHUNK and self.ids:
            self.turn()                                     # also forgets a comma that opens the next chunk
        self.ids += rows
        self.weights += [weight] * len(rows)

    def turn(self) -> None:
        """Pad the chunk and begin the next one."""
        used = len(self.ids)
        ids = (one if isinstance(one, int) else 0 for one in self.ids)
        learned = tuple((place, *one) for place, one in enumerate(self.ids, 1) if not isinstance(one, int))
        self.full.append(Chunk((START, *ids, *[END] * (CHUNK - used + 1)), (1.0, *self.weights, *[1.0] * (CHUNK - used + 1)), used,
                               learned=learned))
        self.ids, self.weights, self.last_comma = [], [], -1

    def finished(self) -> tuple[Chunk, ...]:
        if self.ids or not self.full:
            self.turn()
        return tuple(self.full)


def count(text: str, tokenizer: Tokenizer, *, steps: int = 20, negative: bool = False, emphasis: str = "Original",
          comma_padding_backtrack: int = 20, comments: bool = True, words: Words | None = None) -> tuple[int, int]:
    """(tokens, next multiple of 75) as shown beside the prompt: of its longest part at its longest step.

    A chunk that was broken off counts as 75. comments: # lines are not counted. Tags and AND are only read in the positive prompt.
    """
    grammar.check(text, "negative_prompt" if negative else "prompt")
    if comments:
        text = grammar.without_comments(text)
    sides = [side for side in grammar.split_towers(text if negative else tags.extract(text)[0]) if side is not None]
    parts = [part for side in sides for part in (((side, 1.0),) if negative else grammar.split_and(side))]
    texts = {step for part, _ in parts for _, step in timeline.schedule(part, steps)}
    most = 0
    for step in texts:
        found = chunks(step, tokenizer, emphasis=emphasis, comma_padding_backtrack=comma_padding_backtrack, words=words)
        most = max(most, CHUNK * (len(found) - 1) + found[-1].used)
    return most, CHUNK * max(1, -(-most // CHUNK))
