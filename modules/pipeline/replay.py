"""Make a picture again from what its file says, and say whether it is the same; if not, what differs first.

The order in which differences are named: a setting, a file's hash, a library's version, the machine, the pixels. A picture of a batch is
made alone; should that not give every bit (sums in a batch may round otherwise), its whole batch is made and its picture taken from there.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy

from modules.core.errors import PromptError, ReplayError, WebUIError
from modules.imaging import metadata
from modules.pipeline import infotext, parameters, plan, provenance
from modules.pipeline.request import Picture, Request, Result

Run = Callable[[Request], Result]
Find = Callable[[str, str, str], str]
Extra = Callable[[Mapping[str, str]], Mapping[str, Any]]
State = Literal["identical", "different", "cannot"]
EXIT_CODES = (("identical", 0), ("different", 1), ("cannot", 2))
NAMES = frozenset({"checkpoint", "vae", "refiner"})                    # files: compared by hash, not by name
NEEDED = ("Steps", "Sampler", "Seed")                       # without these a text says too little


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a replay found.

    first_difference: "" when identical, else e.g. "setting: steps", "file hash: model", "library: torch", "machine: device", "pixels".
    """

    state: State
    first_difference: str
    sentence: str                                           # for the user
    max_error: float | None = None                          # in 1/255; None = no pixels were compared
    mean_error: float | None = None

    def __str__(self) -> str:
        return self.sentence

    @property
    def identical(self) -> bool:
        return self.state == "identical"

    @property
    def exit_code(self) -> int:
        """0 identical, 1 different, 2 cannot."""
        return dict(EXIT_CODES)[self.state]


def replay(source: bytes | str | Path, run: Run, find: Find, extra: Extra = lambda fields: {}) -> Verdict:
    """source: the file's bytes or its path. run: makes a request's pictures.

    extra: the labels of a text -> the values of extensions' controls among them, as Request.extra.

    find: (kind "checkpoint" | "vae", name, sha256 or a beginning of it or "") -> the name to ask for here, preferring the file of that
    hash; raises NotFoundError when neither hash nor name is here.
    Never raises a WebUIError: what stands in the way is the sentence of a "cannot".
    """
    try:
        file = source if isinstance(source, bytes) else _bytes(Path(source))
        found = metadata.read(file)
        record = record_in(found)
        if record is not None:
            return _from_record(file, record, run, find)
        if found.infotext:
            return _from_text(file, infotext.read(found.infotext), run, find, extra)
        raise ReplayError("The picture carries no parameters, so it cannot be made again; use the file as it was saved.")
    except WebUIError as error:
        return Verdict(state="cannot", first_difference="", sentence=str(error))


def record_in(found: metadata.Metadata) -> dict[str, Any] | None:
    """The provenance record of a picture's metadata; None when it has none. Raises ImageMetaError for one that cannot be read."""
    return provenance.read(found.record) if found.record else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReplayError(f"{path} cannot be read ({error.strerror}).") from error


def remade(request: Request, files: Iterable[tuple[int, str, bool, bytes]]) -> Result:
    """A Result from picture files alone (index, infotext, complete, bytes), as another machine sent them."""
    pictures = []
    for index, text, complete, file in files:
        found = metadata.read(file)
        pictures.append(Picture(
            index=index, seed=0, subseed=0, prompt="", negative_prompt="", image=metadata.pixels(file), infotext=text,
            record=record_in(found) or {}, complete=complete, file=file))
    return Result(request=request, pictures=tuple(pictures))


# ---- by the record

def _from_record(file: bytes, record: Mapping[str, Any], run: Run, find: Find) -> Verdict:
    if not record["picture"].get("complete", True):
        raise ReplayError("The picture was interrupted before its last step, so it cannot be made again.")
    model = record["model"]
    here: dict[str, Any] = {"checkpoint": find("checkpoint", model.get("name", ""), model.get("sha256", "")), "vae": _vae(record, find)}
    refiner = record.get("refiner")
    here["refiner"] = find("checkpoint", refiner.get("name", ""), refiner.get("sha256", "")) if refiner else ""
    asked = dataclasses.replace(provenance.alone(record), **here)
    made = _only(run(asked), 0)
    errors = compare(file, made.file)
    if errors is not None and errors[0] > 0 and _in_batch(record):
        request, position = _batch_of(record)
        together = dataclasses.replace(request, **here)
        try:
            again = _only(run(together), position)
        except PromptError:                                 # the files that its wildcards choose from are gone
            again = made
        if compare(file, again.file) == (0, 0):
            asked, made, errors = together, again, (0.0, 0.0)
    differences = tuple(_record_differences(record, _told(made), asked))
    return _verdict(errors, differences, "The picture")


def _vae(record: Mapping[str, Any], find: Find) -> str:
    vae = record.get("vae")
    return find("vae", vae.get("name", ""), vae.get("sha256", "")) if vae else "None"


def _only(result: Result, index: int) -> Picture:
    for picture in result.pictures:
        if picture.index == index and picture.complete:
            return picture
    raise ReplayError("The replay was stopped before it gave a picture.")


def _told(made: Picture) -> Mapping[str, Any]:
    """The record inside the new file; a picture read back from disk has it nowhere else."""
    return made.record or record_in(metadata.read(made.file)) or {}


def _in_batch(record: Mapping[str, Any]) -> bool:
    request = provenance.request_of(record)
    return request.batch_size > 1 and not request.deterministic


def _batch_of(record: Mapping[str, Any]) -> tuple[Request, int]:
    """The request of the one batch that this picture was in, and its place there."""
    request = provenance.request_of(record)
    first = record["picture"]["index"] // request.batch_size * request.batch_size
    seed, subseed = plan.seeds(request, first)
    return dataclasses.replace(request, n_iter=1, seed=seed, subseed=subseed), record["picture"]["index"] - first


def _record_differences(old: Mapping[str, Any], new: Mapping[str, Any], asked: Request) -> Iterator[tuple[str, str]]:
    """(first_difference, in words), most telling first."""
    wanted, got = asked, provenance.request_of(new) if new else asked
    for row in parameters.PARAMETERS:
        before, after = getattr(wanted, row.field), getattr(got, row.field)
        if row.field not in NAMES and before != after:
            yield f"setting: {row.field}", f"{row.label} was {before!r} and is {after!r}"
    if wanted.init and got.init:
        for row in parameters.INIT:
            before, after = getattr(wanted.init, row.field), getattr(got.init, row.field)
            if before != after:
                yield f"setting: {row.field}", f"{row.label} was {before!r} and is {after!r}"
    yield from _file_differences(old, new)
    yield from _pair_differences("library", old.get("libraries"), new.get("libraries"))
    for part in ("device", "dtype", "layers"):
        if part in old and part in new and old[part] != new[part]:
            yield f"machine: {part}", f"{part} was {_short(old[part])} and is {_short(new[part])}"


def _file_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in ("model", "vae", "refiner"):
        before, after = old.get(part) or {}, new.get(part) or {}
        for fact in ("sha256", "prediction", "family"):
            if before.get(fact) and before.get(fact) != after.get(fact):
                kind = "file hash" if fact == "sha256" else "setting"
                named = f"{part} {before.get('name', '')}".strip()
                yield f"{kind}: {part}", f"{fact} of the {named} was {_short(before[fact])} and is {_short(after.get(fact))}"
    before, after = _files(old), _files(new)
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            yield f"file hash: {name}", f"the file {name} is not the same"


def _files(record: Mapping[str, Any]) -> dict[str, Any]:
    return {str(file.get("name")): (file.get("sha256"), file.get("weight")) for file in record.get("files") or ()}


def _pair_differences(kind: str, old: Any, new: Any) -> Iterator[tuple[str, str]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                yield f"{kind}: {name}", f"{name} was {_short(old.get(name))} and is {_short(new.get(name))}"


def _short(value: Any) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 40 else text[:16] + "…"


# ---- by A1111's text

def _from_text(file: bytes, parsed: infotext.Parsed, run: Run, find: Find, extra: Extra) -> Verdict:
    missing = [label for label in NEEDED if not parsed.fields.get(label)]
    if missing:
        raise ReplayError(f"The picture's text does not name {' and '.join(missing)}, so it cannot be made again.")
    request, lacks = _request_of_text(file, parsed, find)
    made = _only(run(dataclasses.replace(request, extra=extra(parsed.fields))), 0)
    again = infotext.read(made.infotext)
    differences = [(f"setting: {label}", f"“{label}: {_short(value)}” cannot be repeated here")
                   for label, value in infotext.leftovers(parsed).items() if again.fields.get(label) != value]
    for label in ("Model hash", "VAE hash", "TI hashes"):
        before, after = parsed.raw.get(label), again.raw.get(label)
        if before and before != after:
            differences.append((f"file hash: {label.split()[0].lower()}", f"{label} was {before} and is {after or 'missing'}"))
    if parsed.raw.get("Version") != again.raw.get("Version"):
        differences.append(("library: version", f"it was made by {parsed.raw.get('Version', 'an unnamed version')}"))
    told = f"The picture carries no record, only a text, which does not name {', '.join(lacks)}. It" if lacks else \
        "The picture carries no record, only a text. It"
    return _verdict(compare(file, made.file), tuple(differences), told)


def _request_of_text(file: bytes, parsed: infotext.Parsed, find: Find) -> tuple[Request, tuple[str, ...]]:
    """The request as far as the text knows it, and what it does not name."""
    fields = infotext.fields_of(parsed, defaults=True)
    if "sampler" not in fields:
        raise ReplayError(f"The sampler “{parsed.raw.get('Sampler', '')[:60]}” of the picture's text is not known here.")
    lacks = [label for label in ("Model", "Model hash", "CFG scale", "Size") if label not in parsed.raw]
    size = metadata.read(file)
    fields = {"width": size.width, "height": size.height, **fields}
    name, digest = parsed.raw.get("Model", ""), parsed.raw.get("Model hash", "")
    fields["checkpoint"] = find("checkpoint", name, digest) if name or digest else ""
    fields["vae"] = find("vae", parsed.raw["VAE"], parsed.raw.get("VAE hash", "")) if parsed.raw.get("VAE") else "Automatic"
    refiner, _, digest = parsed.raw.get("Refiner", "").partition(" [")
    fields["refiner"] = find("checkpoint", refiner, digest.rstrip("]")) if refiner else ""
    request = Request(**{**fields, "batch_size": 1, "n_iter": 1})
    parameters.check(request)
    return request, tuple(lacks)


# ---- pixels and words

def compare(file: bytes, other: bytes) -> tuple[float, float] | None:
    """(largest, mean) difference of two picture files per channel, in 1/255; None when their sizes differ. Raises ImageMetaError."""
    one, two = metadata.pixels(file), metadata.pixels(other)
    if one.size != two.size:
        return None
    first, second = (numpy.asarray(image.convert("RGB"), dtype=numpy.int16) for image in (one, two))
    difference = numpy.abs(first - second)
    return float(difference.max()), float(difference.mean())


def _verdict(errors: tuple[float, float] | None, differences: tuple[tuple[str, str], ...], subject: str) -> Verdict:
    words = f": {differences[0][1]}" if differences else ""
    if errors is None:
        return Verdict(state="different", first_difference="setting: size", sentence=f"{subject} came out in another size{words}.")
    largest, mean = errors
    if largest == 0:
        note = f" (although {differences[0][1]})" if differences else ""
        sentence = f"{subject} came out identical{note}."
        return Verdict(state="identical", first_difference="", max_error=0.0, mean_error=0.0, sentence=sentence)
    first = differences[0][0] if differences else "pixels"
    return Verdict(
        state="different", first_difference=first, max_error=largest, mean_error=mean,
        sentence=f"{subject} came out different; the largest error is {largest:.0f}/255, the mean {mean:.4f}/255{words}.")
