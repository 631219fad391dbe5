"""`engine.tools`: named questions that the faces ask, and small errands. Everything here answers with plain values.

`Library` keeps the lists that are read from disk (models, styles, vocabulary), each made when it is first asked for.
"""
from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.core.errors import CheckpointError, NotFoundError, RequestError, SettingsError, WebUIError
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from modules.core.settings import Settings, SettingsFile, as_json, option
from modules.imaging import metadata
from modules.jobs.delivery import Delivery
from modules.jobs.job import Job
from modules.jobs.store import JobRow, Store
from modules.model_facts import ModelInfo, NativeSizes, info
from modules.pipeline import infotext, parameters, provenance
from modules.pipeline.extension import Entry, of_text, pasted
from modules.pipeline.request import Request, Result
from modules.prompts import grammar, styles, wildcards
from modules.prompts.styles import Style
from modules.prompts.styles import apply as apply_styles
from modules.sampling import catalogue

PAGE_DEFAULTS = "page_defaults.json"                        # in the data folder: {tab: {Request field: value}}


class Library:
    """The user's files as lists. Any thread may ask; nothing is read before."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._hashes = Hashes(paths.hashes_file)
        self._sizes = NativeSizes(paths.cache)
        self._lock = threading.RLock()
        self._shelf: Any = None
        self._tokenizer: Any = None
        self._embeddings: Any = None
        self._encodings: Any = None
        self._ladders: Any = None

    @property
    def shelf(self) -> Any:
        """checkpoints.shelf.Shelf; its room may import torch."""
        with self._lock:
            if self._shelf is None:
                from modules.checkpoints.shelf import Shelf
                self._shelf = Shelf(self._paths, self._hashes)
            return self._shelf

    @property
    def tokenizer(self) -> Any:
        """prompts.tokens.Tokenizer; reads the vocabulary file."""
        with self._lock:
            if self._tokenizer is None:
                from modules.prompts.tokens import Tokenizer  # tokenizers: kept off the start
                self._tokenizer = Tokenizer()
            return self._tokenizer

    @property
    def embeddings(self) -> Any:
        """adapters.embedding.Embeddings: the learned words; each file is read when a prompt names it."""
        with self._lock:
            if self._embeddings is None:
                from modules.adapters.embedding import Embeddings  # tokenizers: kept off the start
                self._embeddings = Embeddings((self._paths.embeddings, *self._paths.more_embeddings), self._hashes)
            return self._embeddings

    @property
    def encodings(self) -> Any:
        """prompts.encode.EncodeCache: conditionings of the texts used last"""
        with self._lock:
            if self._encodings is None:
                from modules.prompts.encode import EncodeCache  # torch: kept off the start
                self._encodings = EncodeCache()
            return self._encodings

    @property
    def ladders(self) -> Any:
        """checkpoints.ladders.Ladders: the noise levels of a model, read from its header."""
        with self._lock:
            if self._ladders is None:
                from modules.checkpoints.ladders import Ladders  # torch: kept off the start
                self._ladders = Ladders()
            return self._ladders

    def styles(self) -> dict[str, Any]:
        """Style by name, as the styles file has them now."""
        return {style.name: style for style in styles.read(self._paths.styles_file)}

    def change_styles(self, change: Callable[[dict[str, Style]], dict[str, Style]]) -> None:
        """Write the styles file anew with what `change` makes of its styles by name. Raises SettingsError, SaveError."""
        with self._lock:
            styles.write(self._paths.styles_file, change(self.styles()).values())

    def wildcards(self) -> wildcards.Folder:
        """The files that prompts choose lines from, as they are now; each is read when a prompt names it."""
        return wildcards.Folder(self._paths.wildcards)

    def native_size(self, asked: str, chosen: str) -> tuple[int, int]:
        """(width, height) in pixels at which a checkpoint draws best as its file or its family says, else as a plain request has it.

        asked, chosen: as for `choose_checkpoint`. Raises NotFoundError.
        """
        entry = self.shelf.find_checkpoint(self.choose_checkpoint(asked, chosen)[0])
        return self._sizes.of(entry) or (Request().width, Request().height)

    def choose_checkpoint(self, asked: str, chosen: str) -> tuple[str, tuple[str, ...]]:
        """The name of the checkpoint to use, and sentences about a replacement.

        asked: by the request, must exist; chosen: in the settings, gives way to the built-in or first model when it is gone.
        Raises NotFoundError.
        """
        if asked:
            return self.shelf.find_checkpoint(asked).name, ()
        if chosen:
            try:
                return self.shelf.find_checkpoint(chosen).name, ()
            except NotFoundError:
                entry = self._first()
                return entry.name, (f"The checkpoint “{chosen}” of the settings is not there any more; {entry.name} was used.",)
        return self._first().name, ()

    def _first(self) -> Any:
        entries = self.shelf.checkpoints()
        if not entries:
            folder = self._paths.checkpoints[0]
            raise NotFoundError(f"There is no model to draw with; put a .safetensors checkpoint into {folder}.")
        builtin = [entry for entry in entries if entry.path in self._paths.builtin_models]
        return (builtin or list(entries))[0]

    def find(self, kind: str, name: str, sha256: str) -> str:
        """The shelf's name for a file that a picture names: the one of this hash (or beginning of it), else the one of this name.

        kind: "checkpoint" or "vae". Files are hashed until the right one is found, those of the right name first.
        Raises NotFoundError when there is neither.
        """
        entries = self.shelf.checkpoints() if kind == "checkpoint" else self.shelf.vaes()
        stem = Path(name.replace("\\", "/")).name
        named = [entry for entry in entries if stem and stem in (entry.name, entry.path.name, entry.base, entry.model_name)]
        if sha256:
            for entry in dict.fromkeys((*named, *entries)):
                if self._has_hash(entry, sha256):
                    return entry.name
        if not named:
            known = f" [{sha256[:10]}]" if sha256 else ""
            raise NotFoundError(f"The {kind} {name or 'of the picture'}{known} is not here; put its file into the models folder.")
        return named[0].name

    def _has_hash(self, entry: Any, sha256: str) -> bool:
        try:
            return self._hashes.sha256(entry.path).startswith(sha256.lower())
        except CheckpointError:
            return False                                    # a file that cannot be read is not the one

    def choose_refiner(self, name: str) -> str:
        """The name of the checkpoint, "" for none. Raises NotFoundError."""
        return "" if name in ("", "None", "none") else self.shelf.find_checkpoint(name).name

    def choose_vae(self, name: str) -> str:
        """"Automatic", "None" or the name of a VAE file on the shelf. Raises NotFoundError."""
        if name in ("", "Automatic", "None"):
            return name or "Automatic"
        return self.shelf.find_vae(name).name


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a picture file tells. request: the Request fields that its text names (without a record: as far as A1111's text goes)."""

    infotext: str                                           # "" when it has none
    fields: Mapping[str, str]                               # raw labels and values of the text
    request: Mapping[str, Any]
    record: Mapping[str, Any] | None                        # the provenance record, if the file carries one
    items: Mapping[str, str]                                # other metadata
    width: int
    height: int
    format: str                                             # PNG, JPEG, WEBP, GIF, AVIF
    notices: tuple[str, ...] = ()                           # sentences about what could not be read


class Tools:
    """The engine's named questions; see each docstring. Made by the engine."""

    def __init__(self, paths: Paths, settings: SettingsFile, library: Library, store: Store, delivery: Delivery,
                 submit: Callable[..., Job], model_chosen: Callable[[], None],
                 extensions: tuple[Entry, ...] = ()) -> None:
        self._paths = paths
        self._settings = settings
        self._library = library
        self._store = store
        self._delivery = delivery
        self._submit = submit
        self._model_chosen = model_chosen
        self._extensions = extensions

    # ---- lists

    def extensions(self) -> tuple[Entry, ...]:
        """What was found in the folders of extensions; those that work in the order in which they are asked."""
        return self._extensions

    def extra_of_text(self, fields: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The values of extensions' controls that the labels of a text name, as Request.extra has them."""
        return of_text(self._extensions, pasted(self._extensions, fields))

    def samplers(self) -> tuple[catalogue.SamplerEntry, ...]:
        """In the menu's order; each has name, aliases and `api_options`."""
        return catalogue.SAMPLERS

    def schedulers(self) -> tuple[catalogue.ScheduleEntry, ...]:
        """In the menu's order, "Automatic" first; each has name, label, aliases, default_rho, need_inner_model."""
        return catalogue.SCHEDULES

    def checkpoints(self, refresh: bool = False) -> tuple[Any, ...]:
        """The shelf's entries: path, name, title, model_name, sha256, shorthash, metadata. refresh: look at the folders again."""
        if refresh:
            self._library.shelf.refresh()
        return tuple(self._library.shelf.checkpoints())

    def checkpoint(self) -> Any | None:
        """The entry that a request without a checkpoint will use; None when there is no model at all."""
        try:
            name, _ = self._library.choose_checkpoint("", self.settings()["sd_model_checkpoint"])
        except NotFoundError:
            return None
        return self._library.shelf.find_checkpoint(name)

    def native_size(self, checkpoint: str = "") -> tuple[int, int]:
        """(width, height) in pixels at which this checkpoint ("" = the chosen one) draws best. Raises NotFoundError."""
        return self._library.native_size(checkpoint, self.settings()["sd_model_checkpoint"])

    def model_info(self, checkpoint: str = "") -> ModelInfo:
        """What its header and the files beside it tell of a checkpoint ("" = the chosen one). Loads torch. Raises NotFoundError."""
        name, _ = self._library.choose_checkpoint(checkpoint, self.settings()["sd_model_checkpoint"])
        return info(self._library.shelf.find_checkpoint(name))

    def preview_file(self, checkpoint: str) -> Path:
        """The picture that lies beside a checkpoint. Raises NotFoundError."""
        found = self._library.shelf.find_checkpoint(checkpoint).preview
        if found is None:
            raise NotFoundError(f"There is no picture beside {checkpoint}.")
        return Path(found)

    def vaes(self, refresh: bool = False) -> tuple[Any, ...]:
        """The VAE files' entries. "Automatic" and "None" are always possible and not listed."""
        if refresh:
            self._library.shelf.refresh()
        return tuple(self._library.shelf.vaes())

    def styles(self) -> tuple[Any, ...]:
        """The styles of styles.csv in its order: name, prompt, negative_prompt."""
        return tuple(self._library.styles().values())

    def keep_style(self, name: str, prompt: str, negative_prompt: str) -> None:
        """A new style at the end of styles.csv, or other texts for the one of this name. Raises SettingsError, PromptError, SaveError."""
        grammar.check(prompt)
        grammar.check(negative_prompt, "negative_prompt")
        self._library.change_styles(lambda known: known | {name: Style(name, prompt, negative_prompt)})

    def remove_style(self, name: str) -> None:
        """Raises NotFoundError, SettingsError, SaveError."""
        def without(known: dict[str, Style]) -> dict[str, Style]:
            if name not in known:
                raise NotFoundError(f"There is no style “{name[:80]}”.")
            return {key: style for key, style in known.items() if key != name}

        self._library.change_styles(without)

    def wildcards(self) -> tuple[str, ...]:
        """The names of the files that prompts may choose lines from."""
        return self._library.wildcards().names()

    def embeddings(self, refresh: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """(loaded, skipped) by name: embeddings that the chosen checkpoint can use, and the others, or why they cannot be read."""
        if refresh:
            self._library.embeddings.refresh()
        try:
            described = self.model_info().described
        except NotFoundError:
            described = None
        return self._library.embeddings.listed([tower.width for tower in described.towers] if described else [])

    def choices(self, field: str) -> tuple[str, ...]:
        """What a menu for this Request field shows; () for a field that is no choice."""
        named = parameters.by_field(field).choices
        if not isinstance(named, str):
            return tuple(named)
        lists: Mapping[str, Callable[[], tuple[str, ...]]] = {
            "samplers": lambda: tuple(entry.name for entry in self.samplers()),
            "schedulers": lambda: tuple(entry.label for entry in self.schedulers()),
            "checkpoints": lambda: tuple(entry.title for entry in self.checkpoints()),
            "refiners": lambda: ("", *(entry.title for entry in self.checkpoints())),
            "vaes": lambda: ("Automatic", "None", *(entry.name for entry in self.vaes())),
            "styles": lambda: tuple(style.name for style in self.styles()),
        }
        return lists[named]() if named else ()

    # ---- settings

    def settings(self) -> Settings:
        """The settings of this moment, frozen."""
        return self._settings.snapshot()

    def options(self) -> dict[str, Any]:
        """Every option by A1111's key, as JSON values; sd_model_checkpoint and its hash are those that would be used."""
        values = as_json(self.settings())
        entry = self.checkpoint()
        if entry is not None:
            values["sd_model_checkpoint"] = entry.title
            values["sd_checkpoint_hash"] = entry.sha256 or ""
        return values

    def set_options(self, changes: Mapping[str, Any], remote: bool = True) -> tuple[str, ...]:
        """Change settings, all or nothing, and save them. Returns sentences for the user.

        remote: the wish came over the API, which may not change restricted options (they are passed over, with a sentence).
        Raises SettingsError for unknown keys and values that do not fit, NotFoundError for a checkpoint or VAE that does not exist.
        """
        wanted = {key: value for key, value in changes.items() if key != "sd_checkpoint_hash"}
        table = self.settings().table
        for key in wanted:
            option(key, table)
        kept_out = [key for key in wanted if remote and table[key].restricted]
        wanted = {key: value for key, value in wanted.items() if key not in kept_out}
        if wanted.get("sd_model_checkpoint"):
            if not isinstance(wanted["sd_model_checkpoint"], str):
                raise SettingsError("The setting sd_model_checkpoint takes the name of a checkpoint.")
            wanted["sd_model_checkpoint"] = self._library.shelf.find_checkpoint(wanted["sd_model_checkpoint"]).title
        if isinstance(wanted.get("sd_vae"), str):
            wanted["sd_vae"] = self._library.choose_vae(wanted["sd_vae"])
        before = self.settings()
        after = self._settings.write(wanted, restricted=not remote)
        if any(before[key] != after[key] for key in ("sd_model_checkpoint", "sd_vae")):
            self._model_chosen()
        return tuple(f"The setting {key} can only be changed on the page of this machine." for key in kept_out)

    def request(self, values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, api: bool = False) -> Request:
        """A Request from field values as a face got them (texts for numbers are taken); what is not named comes from the settings.

        init: a mapping of InitImage fields, pictures named as `engine.inputs` named them.
        overrides: settings for this request only. api: fields that are not named have the API's defaults where those differ.
        Raises RequestError naming the field, SettingsError.
        """
        return request_with(values, self._settings.snapshot(overrides), api=api)

    # ---- texts and pictures

    def token_count(self, text: str, *, negative: bool = False, styles: Sequence[str] = ()) -> tuple[int, int]:
        """(tokens, limit): how many tokens the prompt has, and how many fit into the chunks it fills (75, 150, ...).

        negative: it is a negative prompt. styles: names of those that are merged in first.
        """
        from modules.prompts import tokens  # tokenizers: kept off the start
        tokenizer, known = self._library.tokenizer, self._library.styles() if styles else {}
        text = apply_styles("" if negative else text, text if negative else "", [known[name] for name in styles if name in known])[negative]
        return tokens.count(text, tokenizer, negative=negative, words=self._library.embeddings.words(tokenizer))

    def read_picture(self, source: bytes | str | Path) -> Reading:
        """What a picture file (its bytes, or its path) says about how it was made. Raises ImageMetaError when it is no picture."""
        found = metadata.read(source if isinstance(source, bytes) else Path(source))
        parsed = infotext.read(found.infotext)
        record, notices = _record(found)
        return Reading(
            infotext=found.infotext, fields=dict(parsed.fields), request=self._asked(record, parsed) if found.infotext or record else {},
            record=record, items=dict(found.items), width=found.width, height=found.height, format=found.format,
            notices=(*found.notices, *notices))

    def _asked(self, record: Mapping[str, Any] | None, parsed: infotext.Parsed) -> dict[str, Any]:
        """The fields of the picture's request, the values of extensions among them where there are any extensions."""
        fields = _request(record, parsed)
        return {"extra": self.extra_of_text(parsed.fields), **fields} if self._extensions else fields

    def replay(self, source: bytes | str | Path, progress: Callable[[Job], None] | None = None) -> Any:
        """Make the picture again from what it says and compare: a pipeline.replay.Verdict.

        Blocks for as long as a job or two take. What is made is not saved.
        progress: called with each job that is submitted for it, so that it can be watched or cancelled.
        """
        from modules.pipeline import replay  # numpy: kept off the start

        def run(request: Request) -> Result:
            job = self._submit(request, save=False)
            if progress:
                progress(job)
            return job.result()

        return replay.replay(source, run, self._library.find, self.extra_of_text)

    # ---- the machine and the past

    def device(self) -> str:
        """The device in words. Loads torch."""
        from modules.core import hardware
        return hardware.describe()

    def history(self, limit: int = 100) -> tuple[JobRow, ...]:
        """The newest jobs first: id, state, created, error ..."""
        return self._store.jobs(limit=limit)

    def picture_file(self, job: str, index: int) -> Path:
        """Where this picture of a job lies on disk. Raises NotFoundError, also when the file was removed."""
        return self._delivery.file_of(self._store.picture(job, index))

    def warnings(self) -> tuple[str, ...]:
        """Sentences about the start, e.g. a settings file or a list of model folders that could not be read."""
        return (*self._settings.warnings, *self._paths.notices, *(entry.trouble for entry in self._extensions if entry.trouble))

    def page_defaults(self, tab: str) -> Mapping[str, Any]:
        """Request fields that the user's own list of defaults for a tab gives other values; what does not fit is left out."""
        try:
            found = json.loads((self._paths.data / PAGE_DEFAULTS).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        values = found.get(tab) if isinstance(found, dict) else None
        return _fitting(values) if isinstance(values, dict) else {}

    def ladder(self, scheduler: str, sampler: str, steps: int, checkpoint: str = "", **numbers: Any) -> tuple[float, ...]:
        """The noise levels that would be walked, falling, for a plot; checkpoint "" = the chosen one, whose header is read.

        numbers: rho, sigma_min, sigma_max (0 = own), discard, alpha, beta (of Beta), levels (a list as text, instead of the schedule).
        Loads torch. Raises ScheduleError, NotFoundError, CheckpointError.
        """
        name, _ = self._library.choose_checkpoint(checkpoint, self.settings()["sd_model_checkpoint"])
        return self._library.ladders.of(self._library.shelf.find_checkpoint(name).path, scheduler, sampler, steps, **numbers)


def request_with(values: Mapping[str, Any], settings: Mapping[str, Any], *, api: bool = False) -> Request:
    """A Request of these fields, the rest as `settings` has it (as far as it knows), see Tools.request."""
    fields: dict[str, Any] = {}
    for row in parameters.PARAMETERS:
        if row.field in values:
            fields[row.field] = parameters.coerce(row, values[row.field])
        elif row.setting in settings and row.field not in ("checkpoint", "vae"):
            value = settings[row.setting]
            fields[row.field] = parameters.coerce(row, "jpg" if value == "jpeg" else value)
        elif api and row.api_default is not None:
            fields[row.field] = row.api_default
    fields |= {name: dict(values[name]) for name in ("extra", "notes") if name in values}
    if values.get("init"):
        fields["init"] = parameters.init_with(values["init"], settings, api=api)
    return Request(**fields)


def _fitting(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a Request can hold; a sampler's name that carries its schedule is told apart."""
    fields: dict[str, Any] = {}
    for row in parameters.PARAMETERS:
        if row.field in values and row.field not in ("checkpoint", "vae"):
            try:
                value = parameters.coerce(row, values[row.field])
                parameters.check_value(row, value)
            except RequestError:
                continue
            fields[row.field] = value
    if "sampler" in fields or "scheduler" in fields:
        usual = Request()
        try:
            fields["sampler"], fields["scheduler"] = catalogue.resolve(
                fields.get("sampler", usual.sampler), fields.get("scheduler", usual.scheduler))
        except WebUIError:
            fields.pop("sampler", None)
            fields.pop("scheduler", None)
    return fields


def _record(found: metadata.Metadata) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    try:
        return (provenance.read(found.record), ()) if found.record else (None, ())
    except WebUIError as error:
        return None, (str(error),)


def _request(record: Mapping[str, Any] | None, parsed: infotext.Parsed) -> dict[str, Any]:
    """Request fields of one picture, those of its init among them: by its record where it has a sound one, else by the text."""
    if record is not None:
        try:
            alone = provenance.alone(record)
            init = {} if alone.init is None else {item.name: getattr(alone.init, item.name) for item in dataclasses.fields(alone.init)}
            return {**{row.field: getattr(alone, row.field) for row in parameters.PARAMETERS}, **init, "extra": dict(alone.extra)}
        except WebUIError:
            pass                                            # made by another version: the text is what is left
    return {**infotext.fields_of(parsed, defaults=True), **infotext.init_fields_of(parsed)}
