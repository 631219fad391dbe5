"""Where things lie, and the one gate for names that come from outside. Nothing is created at import."""
from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.core import model_folders
from modules.core.errors import PathError, SaveError

LONGEST_NAME = 255                                          # bytes of UTF-8: the limit of ext4, APFS and NTFS alike
FORBIDDEN = frozenset('/\\:*?"<>|')                         # separators, drive letters, streams, wildcards
RESERVED = re.compile(r"(con|prn|aux|nul|clock\$|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)    # devices on Windows
ENCODED = re.compile(r"%(2e%2e|2f|5c|00)", re.IGNORECASE)   # "..", "/", "\" and NUL, if somebody behind us decodes once more
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")    # make a name look like another

Folder = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Every folder and file that Easel uses. Absolute. `Paths.of` fills it, `make` creates the folders.

    checkpoints, vae, lora: folders that are searched, the user's own first, those of other programs last; more_embeddings likewise.
    builtin_models: single read-only files. notices: sentences about what was found wrong on the way.
    """

    root: Path
    data: Path
    models: Path
    checkpoints: tuple[Path, ...]
    vae: tuple[Path, ...]
    lora: tuple[Path, ...]
    embeddings: Path
    extensions: Path
    builtin_extensions: Path
    outputs: Path
    database: Path
    settings_file: Path
    styles_file: Path
    hashes_file: Path
    cache: Path
    spool: Path
    inputs: Path
    builtin_models: tuple[Path, ...] = ()
    more_embeddings: tuple[Path, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def imported_folders(self) -> Path:
        """Where `import-a1111` notes an installation's folders; the user's own list lies beside launch.py."""
        return self.data / model_folders.NAME

    @property
    def wildcards(self) -> Path:
        """The files that prompts choose lines from, beside the styles; nobody makes it but the user."""
        return self.data / "wildcards"

    @staticmethod
    def of(root: Folder, data_dir: Folder | None = None, models_dir: Folder | None = None, ckpt_dir: Folder | None = None,
           vae_dir: Folder | None = None, lora_dir: Folder | None = None, embeddings_dir: Folder | None = None) -> Paths:
        """Folders as the launch flags name them. A flag for checkpoints, VAE or LoRA adds a folder; the others replace one.

        Those that extra_model_paths.yaml, in the root or the data folder, names and that are there stand behind them.
        """
        base = _absolute(root)
        data = _absolute(data_dir) if data_dir else base / "data"
        models = _absolute(models_dir) if models_dir else base / "models"
        found = [model_folders.read(folder / model_folders.NAME) for folder in dict.fromkeys((base, data))]
        others = [section for sections, _ in found for section in sections]
        return Paths(
            root=base, data=data, models=models,
            checkpoints=_folders(models / "Stable-diffusion", ckpt_dir, model_folders.folders(others, "checkpoints")),
            vae=_folders(models / "VAE", vae_dir, model_folders.folders(others, "vae")),
            lora=_folders(models / "Lora", lora_dir, model_folders.folders(others, "loras")),
            more_embeddings=model_folders.folders(others, "embeddings"),
            notices=tuple(notice for _, notices in found for notice in notices),
            embeddings=_absolute(embeddings_dir) if embeddings_dir else models / "embeddings",
            extensions=base / "extensions", builtin_extensions=base / "modules" / "extensions-builtin",
            outputs=data / "outputs", database=data / "easel.db", settings_file=data / "settings.json",
            styles_file=data / "styles.csv", hashes_file=data / "cache" / "hashes.json",
            cache=data / "cache", spool=data / "spool", inputs=data / "inputs",
            builtin_models=tuple(base / "modules" / "demo" / name for name in ("storybook.safetensors", "stand-in.safetensors")),
        )

    def make(self) -> None:
        """Create what is missing. Raises SaveError when the data folder cannot be made; model folders may be read-only."""
        for folder in (self.data, self.outputs, self.cache, self.spool, self.inputs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SaveError(f"The folder {folder} cannot be made ({error.strerror}); choose another with --data-dir.") from error
        for folder in (*self.checkpoints, *self.vae, *self.lora, self.embeddings):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError:
                continue                                    # a read-only volume of models: what is missing is listed as empty


def _absolute(folder: Folder) -> Path:
    return Path(os.path.abspath(os.path.expanduser(folder)))


def _folders(first: Path, more: Folder | None, others: Sequence[Path]) -> tuple[Path, ...]:
    second = () if more is None else (_absolute(more),)
    return tuple(dict.fromkeys((first, *second, *others)))


def safe_name(text: str) -> str:
    """`text` as the name of one file or folder, NFC-normalised, fit for Linux, macOS and Windows alike.

    The verdict is the same on every system. Raises PathError saying what is wrong with it.
    """
    if not isinstance(text, str):
        raise PathError("A file name must be text.")
    fault = _fault(unicodedata.normalize("NFC", text))
    if fault:
        raise PathError(f"“{_shown(text)}” cannot be used as a file name: {fault}.")
    return unicodedata.normalize("NFC", text)


def _fault(name: str) -> str:
    """Why this cannot be one component of a path; "" when it can."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if not name.strip():
        return "it is empty"
    if size > LONGEST_NAME:
        return f"it is {size} bytes long, more than {LONGEST_NAME}"
    if any(letter < " " or "\x7f" <= letter <= "\x9f" for letter in name):
        return "it holds a control character"
    if any(letter in TURNING for letter in name):
        return "it holds a character that changes the direction of writing"
    wrong = sorted(set(name) & FORBIDDEN)
    if wrong:
        return f"it holds {' '.join(wrong)}"
    if name in (".", ".."):
        return "it names a parent folder"
    if name[-1] in ". " or name[0] == " ":
        return "it begins with a space or ends with a dot or a space"
    if RESERVED.fullmatch(name.split(".")[0].strip()):
        return "it names a device on Windows"
    if ENCODED.search(name):
        return "it hides a separator"
    return ""


def _shown(text: str) -> str:
    """At most 60 printable characters of a hostile name, for a sentence."""
    plain = "".join(letter if letter.isprintable() else "�" for letter in text)
    return plain if len(plain) <= 60 else plain[:57] + "..."


def safe_join(root: Folder, *names: str) -> Path:
    """root / names, each name one component that `safe_name` accepts; what lies there must not lead out of root.

    Returns the path unresolved. Raises PathError, also where a symbolic link leaves the folder.
    """
    if not names:
        raise PathError("A file name is missing.")
    folder = Path(root)
    path = folder.joinpath(*(safe_name(name) for name in names))
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:    # a loop of links; RuntimeError before Python 3.13
        raise PathError(f"“{_shown('/'.join(names))}” cannot be followed on disk.") from error
    if not inside:
        raise PathError(f"“{_shown('/'.join(names))}” leads out of its folder.")
    return path


def clean_name(text: str, longest: int = 120, instead: str = "_") -> str:
    """A name made from any text (a prompt, a style): never raises, always accepted by `safe_name`.

    longest: bytes of UTF-8, 8..255. An empty remainder becomes `instead`.
    """
    name = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode("utf-8"))
    name = "".join(instead if letter in FORBIDDEN else letter for letter in name
                   if not (letter < " " or "\x7f" <= letter <= "\x9f" or letter in TURNING))
    name = ENCODED.sub(instead, name)
    name = unicodedata.normalize("NFC", name.encode("utf-8")[:longest - 1].decode("utf-8", "ignore")).strip(" ").rstrip(". ")
    if name and RESERVED.fullmatch(name.split(".")[0].strip()):
        name = instead + name
    return name if name and not _fault(name) else instead


def relative_components(text: str) -> Sequence[str]:
    """A pattern's folders, split at / and \\, each still to pass `safe_join`; empty components fall away."""
    return tuple(part for part in re.split(r"[/\\]", text) if part)
