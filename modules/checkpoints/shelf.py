"""The model files under the models folders: titles, names, hashes, and how a name finds its file. Listing reads no file's content.

A folder in diffusers' layout is one model, as a file is.
"""
from __future__ import annotations

import difflib
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from modules.checkpoints import folder, sidecars
from modules.core import hashing
from modules.core.errors import CheckpointError, NotFoundError
from modules.core.hashing import Hashes
from modules.core.paths import Paths

CHECKPOINTS = (".safetensors", ".sft", ".ckpt")
VAES = (*CHECKPOINTS, ".pt", ".pth", ".bin")
NEAR = tuple(f".vae{ending}" for ending in VAES)            # a VAE that lies beside its checkpoint
BRACKET = re.compile(r"(.*\S)\s*\[([0-9a-f]{8}|[0-9a-f]{10})\]", re.IGNORECASE | re.DOTALL)
NO_BYTES = hashlib.sha256(b"").hexdigest()[:8]
LEGACY = re.compile(r"[0-9a-f]{8}", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file, or one folder in diffusers' layout. name: its path below its folder, with the system's separators.
    sha256: None until somebody needed it; a folder's is that of its files' hashes."""

    path: Path
    name: str
    sha256: str | None = None
    is_folder: bool = False

    @property
    def shorthash(self) -> str | None:
        """The first 10 hex digits, as they stand in titles and infotexts."""
        return self.sha256[:10] if self.sha256 else None

    @property
    def title(self) -> str:
        return f"{self.name} [{self.shorthash}]" if self.sha256 else self.name

    @property
    def base(self) -> str:
        """The file's name without folder and ending."""
        return self.path.name if self.is_folder else self.path.stem

    @property
    def model_name(self) -> str:
        """The name with separators as underscores and without its ending."""
        flat = self.name.replace("\\", "_").replace("/", "_")
        return flat if self.is_folder else os.path.splitext(flat)[0]

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every name by which the file is known without reading it."""
        known = (self.model_name, self.title, self.name, self.base)
        return (*known, self.shorthash or "", self.sha256, f"{self.base} [{self.shorthash}]") if self.sha256 else known

    @property
    def metadata(self) -> dict[str, str]:
        """The texts in the file's header; {} for a file that cannot be read."""
        from modules.checkpoints import read  # torch: kept off listings
        try:
            return read.metadata(self.path)
        except CheckpointError:
            return {}

    @property
    def preview(self) -> Path | None:
        """A picture of what the model draws, which somebody put beside it."""
        return sidecars.preview(self.path)

    @property
    def description(self) -> str:
        return sidecars.description(self.path)

    @property
    def notes(self) -> str:
        return sidecars.note(self.path, "notes")

    @property
    def trigger_words(self) -> str:
        """What a prompt must say for the model to do what it was trained for."""
        return sidecars.note(self.path, "activation text")

    @property
    def preferred_vae(self) -> str:
        """The name of the VAE that the user tied to this checkpoint; "" = none, "None" = the checkpoint's own."""
        name = sidecars.note(self.path, "vae")
        return "" if name == "Automatic" else name


class Shelf:
    """The files as they were found when first asked, or at the last `refresh`. Safe for many threads."""

    def __init__(self, paths: Paths, hashes: Hashes) -> None:
        self._paths = paths
        self._hashes = hashes
        self._lock = threading.RLock()
        self._found: tuple[tuple[Entry, ...], tuple[Entry, ...]] | None = None

    def checkpoints(self) -> tuple[Entry, ...]:
        """Sorted by name without regard to case; the built-in models last. Hashes as far as they are known."""
        return self._with_hashes(self._files()[0])

    def vaes(self) -> tuple[Entry, ...]:
        return self._with_hashes(self._files()[1])

    def refresh(self) -> None:
        """Look at the folders again when next asked."""
        with self._lock:
            self._found = None

    def hashed(self, entry: Entry) -> Entry:
        """The entry with its SHA-256, which may take seconds the first time. Raises CheckpointError."""
        return replace(entry, sha256=self._sha256(entry))

    def stamp(self, entry: Entry) -> hashing.Stamp:
        """What changes when the file, or one of a folder's files, does: size in bytes, modification time in nanoseconds.
        Raises CheckpointError."""
        return folder.stamp(entry.path) if entry.is_folder else hashing.stamp(entry.path)

    def find_checkpoint(self, name: str, fuzzy: bool = False) -> Entry:
        """The checkpoint of this title, name, base name or hash; fuzzy: else the shortest title that holds the text.

        Folders are looked at again before it is given up. Raises NotFoundError that offers the nearest names.
        """
        return self._searched(name, "checkpoint", self.checkpoints, fuzzy)

    def find_vae(self, name: str) -> Entry:
        """The VAE of this name or base name. Raises NotFoundError that offers the nearest names."""
        return self._searched(name, "VAE", self.vaes, False)

    def find_sha256(self, digest: str) -> Entry:
        """The checkpoint or VAE with this hash, computing those that are unknown. Raises NotFoundError."""
        entries = (*self.checkpoints(), *self.vaes())
        for entry in sorted(entries, key=lambda entry: entry.sha256 is None):
            try:
                full = entry if entry.sha256 else self.hashed(entry)
            except CheckpointError:
                continue                                    # a file that cannot be read is not the one
            if full.sha256 == digest.lower():
                return full
        raise NotFoundError(f"No model file here has the hash {digest[:10]}.")

    def vae_of(self, checkpoint: Entry, name: str = "Automatic") -> Entry | None:
        """The VAE file to use with this checkpoint; None = the checkpoint's own. name: "Automatic", "None" or a VAE's.

        Automatic takes the file of the checkpoint's base name ("model.vae.pt", or "model.pt" in a VAE folder), else the one that the user
        tied to it. Raises NotFoundError.
        """
        if name == "None":
            return None
        if name not in ("", "Automatic"):
            return self.find_vae(name)
        fitting = [vae for vae in self.vaes() if _vae_base(vae.path.name) == checkpoint.base]
        beside = [vae for vae in fitting if vae.path.parent == checkpoint.path.parent]
        tied = "" if beside or fitting else checkpoint.preferred_vae
        if tied not in ("", "None"):
            return self.find_vae(tied)
        return next(iter(beside or fitting), None)

    def _sha256(self, entry: Entry) -> str:
        """Of a file; of a folder that of its files' names and hashes, one a line, in the order of the names."""
        if not entry.is_folder:
            return self._hashes.sha256(entry.path)
        return _sha256_of(entry.path, [(path, self._hashes.sha256(path)) for path in folder.every_file(entry.path)])

    def _known(self, entry: Entry) -> str | None:
        if not entry.is_folder:
            return self._hashes.known(entry.path)
        try:
            files = folder.every_file(entry.path)
        except CheckpointError:
            return None
        known = [(path, digest) for path in files if (digest := self._hashes.known(path))]
        return _sha256_of(entry.path, known) if len(known) == len(files) else None

    def _searched(self, name: str, kind: str, entries: Callable[[], tuple[Entry, ...]], fuzzy: bool) -> Entry:
        found = self._found_among(entries(), name, fuzzy)
        if found is None:
            self.refresh()
            found = self._found_among(entries(), name, fuzzy)
        if found is None:
            raise NotFoundError(_missing(name, kind, entries()))
        return found

    def _found_among(self, entries: tuple[Entry, ...], name: str, fuzzy: bool) -> Entry | None:
        return _by_alias(entries, name) or self._by_bracket(entries, name) or self._by_legacy(entries, name) or (
            _by_part(entries, name) if fuzzy else None)

    def _by_bracket(self, entries: tuple[Entry, ...], name: str) -> Entry | None:
        """`name [hash]` of a file that was not hashed yet: the files of that name are hashed now."""
        match = BRACKET.fullmatch(name)
        if not match:
            return None
        digest = match[2].lower()
        for entry in entries:
            if match[1] in (entry.name, entry.base, entry.model_name):
                if len(digest) == 8 and digest == _legacy_hash(entry):
                    return entry
                if len(digest) == 10 and (full := self.hashed(entry)).shorthash == digest:
                    return full
        return None

    @staticmethod
    def _by_legacy(entries: tuple[Entry, ...], name: str) -> Entry | None:
        """A1111's old hash of 8 digits; each file is opened for 64 KiB."""
        if not LEGACY.fullmatch(name):
            return None
        return next((entry for entry in entries if _legacy_hash(entry) == name.lower()), None)

    def _with_hashes(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        return tuple(replace(entry, sha256=self._known(entry)) for entry in entries)

    def _files(self) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
        with self._lock:
            if self._found is None:
                own = list(_below(self._paths.checkpoints, lambda name: name.endswith(CHECKPOINTS) and not name.endswith(NEAR), True))
                builtin = [(path, path.name) for path in self._paths.builtin_models if path.is_file()]
                near = _below(self._paths.checkpoints, lambda name: name.endswith(NEAR))
                vaes = [*_below(self._paths.vae, lambda name: name.endswith(VAES)), *near]
                self._found = _entries([*_sorted(own), *builtin]), _entries(_sorted(vaes))
            return self._found


def _below(folders: Iterable[Path], wanted: Callable[[str], bool], models: bool = False) -> Iterator[tuple[Path, str]]:
    """Ordinary files below the folders and their names; links are followed, a folder is entered once, hidden ones are not.

    A folder that is a model itself is not entered; models: it is among what is found.
    """
    entered: set[str] = set()
    for root in folders:
        for home, subfolders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(home)
            subfolders[:] = [] if real in entered else sorted(name for name in subfolders if not name.startswith("."))
            if real in entered:
                continue
            entered.add(real)
            if home != str(root) and folder.holds_model(home):
                subfolders.clear()
                files = []
                if models:
                    yield Path(home), os.path.relpath(home, root)
            for file in files:
                path = Path(home, file)
                if wanted(file.lower()) and not file.startswith(".") and path.is_file():
                    yield path, os.path.relpath(path, root)


def _sorted(files: Iterable[tuple[Path, str]]) -> list[tuple[Path, str]]:
    return sorted(files, key=lambda item: (item[1].lower(), item[1]))


def _entries(files: Iterable[tuple[Path, str]]) -> tuple[Entry, ...]:
    """One entry a file; a name that is taken gets its folder's before it, and undecodable bytes are shown as escapes."""
    taken: dict[str, Entry] = {}
    for path, raw in files:
        name = raw.encode("utf-8", "backslashreplace").decode("utf-8")
        if name in taken:
            name = f"{path.parent.name}{os.sep}{name}"
        if name not in taken:
            taken[name] = Entry(path=path, name=name, is_folder=os.path.isdir(path))
    return tuple(taken.values())


def _sha256_of(model: Path, hashes: Iterable[tuple[Path, str]]) -> str:
    lines = "".join(f"{path.relative_to(model).as_posix()} {digest}\n" for path, digest in hashes)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _legacy_hash(entry: Entry) -> str:
    """A1111's old hash; "" for a file too short to have one of its own."""
    found = hashing.legacy_hash(entry.path)
    return "" if found == NO_BYTES else found


def _vae_base(file: str) -> str:
    stem = file.rsplit(".", 1)[0]
    return stem[:-4] if stem.lower().endswith(".vae") else stem


def _by_alias(entries: Iterable[Entry], name: str) -> Entry | None:
    """The whole name or title before a base name, so that a file is never hidden by another one's short form."""
    entries = tuple(entries)
    wanted = name.replace("\\", "/")
    for entry in entries:
        if wanted in (entry.name.replace("\\", "/"), entry.title.replace("\\", "/")):
            return entry
    return next((entry for entry in entries if name in entry.aliases), None)


def _by_part(entries: Iterable[Entry], text: str) -> Entry | None:
    for part in (text, BRACKET.sub(r"\1", text)):
        holding = [entry for entry in entries if part and part in entry.title]
        if holding:
            return min(holding, key=lambda entry: len(entry.title))
    return None


def _missing(name: str, kind: str, entries: tuple[Entry, ...]) -> str:
    shown = "".join(letter for letter in name[:80] if letter.isprintable())
    near = difflib.get_close_matches(name[:200], [alias for entry in entries for alias in (entry.name, entry.base)], n=3, cutoff=0.5)
    names = list(dict.fromkeys(_by_alias(entries, alias).name for alias in near))       # type: ignore[union-attr]
    if not entries:
        return f"There is no {kind} “{shown}”, nor any other; put one into the models folder."
    return f"There is no {kind} “{shown}”; " + (f"the nearest are {', '.join(names)}." if names else "choose one of the list.")
