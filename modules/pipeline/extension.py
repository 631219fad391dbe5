"""The doors an extension may use: subclass Extension, override what you need. Values in, values out.

    settings  controls                              what the page, the API and the command line show of it
    prepare -> plan -> adapt -> wrap_model, wrap -> latent -> picture -> saving -> finish        one request on its way; drive: all of it
    pasted  model_loaded                            a text was pasted; a job has borrowed a model

An extension with controls is asked only by requests that bring it a value (Request.extra[name]; values at their defaults are left out), so
one that is not used changes no bit. Whatever it raises, or gives that does not fit, becomes a sentence in Result.warnings that names it,
and the job goes on without it: see doors.py. No torch is imported here.
"""
from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from modules.core.errors import RequestError
from modules.core.options import Option
from modules.pipeline import parameters
from modules.pipeline.request import Picture, Request, Result

if TYPE_CHECKING:
    from torch import Tensor

    from modules.families.base import Model
    from modules.pipeline.plan import Batch
    from modules.sampling.guidance import RowsDenoise
    from modules.sampling.samplers import Denoise

log = logging.getLogger("easel.extensions")
Generate = Callable[[Request], Result]
ControlKind = Literal["bool", "int", "float", "text", "choice"]


@dataclass(frozen=True, kw_only=True)
class Control:
    """One value that a user sets. It rides in Request.extra[extension][name].

    infotext: the label under which `prepare` notes it and from which a pasted text sets it ("" = neither).
    setting: an option of `settings` whose value at submission stands for one that was not given ("" = the default does).
    """

    name: str
    label: str
    kind: ControlKind
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    help: str = ""
    infotext: str = ""
    setting: str = ""

    @property
    def row(self) -> parameters.Parameter:
        """The control as a row of the table, so that its values are read and refused as all others are."""
        shown = None if self.minimum is None or self.maximum is None else (self.minimum, self.maximum)
        return parameters.Parameter(field=self.name, label=self.label, kind=self.kind, section="", help=self.help, infotext=self.infotext,
                                    minimum=self.minimum, maximum=self.maximum, shown=shown, step=self.step, choices=self.choices)

    def taken(self, value: Any) -> Any:
        """The value in the control's own type. Raises RequestError for one that does not fit."""
        found = parameters.coerce(self.row, value)
        found = float(found) if self.kind == "float" else found
        parameters.check_value(self.row, found)
        return found


class Extension:
    """Base of all extensions. name: unique, stands in requests and in the API; after: names of those that come before this one, if there.

    selectable: its `drive` runs the whole request where that names it; other extensions are simply there.
    """

    name: str = ""
    after: tuple[str, ...] = ()
    selectable: bool = False

    def settings(self) -> Sequence[Option]:
        """Options that join the table of settings; their keys begin with a word of the extension's own."""
        return ()

    def controls(self, tab: str) -> Sequence[Control]:
        """What a tab ("txt2img", "img2img") shows. The same in every call."""
        return ()

    def prepare(self, request: Request) -> Request:
        """Another request in the place of this one, seeds and names already decided.

        This one notes the controls that are set and have a label, unless a control named `enabled` says that all is off.
        """
        given = request.extra.get(self.name, {})
        if not self.values(request).get("enabled", True):
            return request
        notes = {control.infotext: given[control.name] for control in self.controls("txt2img")
                 if control.infotext and control.name in given}
        return dataclasses.replace(request, notes={**request.notes, **notes}) if notes else request

    def plan(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Other batches in the place of these; their slots' indices stay those of the request."""
        return batches

    def adapt(self, model: Model, batch: Batch) -> contextlib.AbstractContextManager[None]:
        """Entered before a batch is computed, left after it: the model is then as it was, bit for bit."""
        return contextlib.nullcontext()

    def wrap_model(self, rows_denoise: RowsDenoise, batch: Batch) -> RowsDenoise:
        """Stand inside the guidance, where the rows of all prompts pass."""
        return rows_denoise

    def wrap(self, denoise: Denoise, batch: Batch) -> Denoise:
        """Stand outside the guidance, where each call gives one guided latent a picture."""
        return denoise

    def latent(self, latent: Tensor, batch: Batch) -> Tensor:
        """(B, C, h, w), clean, about to be decoded."""
        return latent

    def picture(self, picture: Picture, batch: Batch) -> Picture:
        """A decoded picture with its text, about to be saved. Its index stays."""
        return picture

    def saving(self, picture: Picture) -> Picture:
        """The last look at a picture, behind all `picture` doors."""
        return picture

    def drive(self, request: Request, generate: Generate) -> Result:
        """Run the request, calling `generate` as often as wanted; its pictures are numbered on."""
        return generate(request)

    def finish(self, result: Result) -> Result:
        """The whole result; what is on disk stays there."""
        return result

    def pasted(self, fields: Mapping[str, str]) -> Mapping[str, str]:
        """Labels and values of a pasted text, before they become fields."""
        return fields

    def model_loaded(self, model: Model) -> None:
        """A job has borrowed this model; told once a job for each."""

    def values(self, request: Request) -> Mapping[str, Any]:
        """All controls by name as this request has them."""
        return {control.name: control.default for control in self.controls("txt2img")} | dict(request.extra.get(self.name, {}))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What was found in a folder of extensions. extension None: disabled, or broken, and then `trouble` is the sentence that says why."""

    folder: str
    builtin: bool
    enabled: bool = True
    trouble: str = ""
    extension: Extension | None = None
    controls: tuple[Control, ...] = ()
    options: tuple[Option, ...] = ()

    @property
    def name(self) -> str:
        return self.extension.name if self.extension else self.folder


def resolved(entries: Iterable[Entry], extra: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Request.extra in its one form: values in their controls' types, those of settings where none was given, without defaults.

    Raises RequestError for an extension or a control that is not here, and for a value that does not fit.
    """
    known = {entry.name.casefold(): entry for entry in entries if entry.extension}
    for name in extra:
        if name.casefold() not in known:
            here = ", ".join(entry.name for entry in known.values()) or "none"
            raise RequestError(f"There is no extension “{name[:60]}” here (there is: {here}); put it into the extensions folder, or leave "
                               f"it out.", field="extra")
    given = {name.casefold(): values for name, values in extra.items()}
    found = {}
    for key, entry in known.items():
        assert entry.extension is not None
        values = _values(entry, given.get(key, {}), settings)
        if values or (entry.extension.selectable and key in given):
            found[entry.extension.name] = values
    return found


def _values(entry: Entry, given: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise RequestError(f"The values of the extension {entry.name} must be a map of names to values.", field="extra")
    names = [control.name for control in entry.controls]
    for name in given:
        if name not in names:
            raise RequestError(f"The extension {entry.name} has no control “{str(name)[:60]}”; it has {', '.join(names) or 'none'}.",
                               field="extra")
    values = {}
    for control in entry.controls:
        standing = settings.get(control.setting, control.default) if control.setting else control.default
        value = control.taken(given.get(control.name, standing))
        if value != control.default:
            values[control.name] = value
    return values


def pasted(entries: Iterable[Entry], fields: Mapping[str, str]) -> Mapping[str, str]:
    """The labels of a text as the extensions want them read; one that fails changes nothing."""
    for entry in entries:
        if entry.extension and type(entry.extension).pasted is not Extension.pasted:
            try:
                fields = {str(label): str(value) for label, value in entry.extension.pasted(dict(fields)).items()}
            except (Exception, SystemExit) as error:
                log.warning("The extension %s failed at a pasted text.", entry.name, exc_info=error)
    return fields


def of_text(entries: Iterable[Entry], fields: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Request.extra as the labels of a text have it; a value that does not fit is left out."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for control in entry.controls:
            if control.infotext and control.infotext in fields:
                with contextlib.suppress(RequestError):
                    found.setdefault(entry.name, {})[control.name] = control.taken(fields[control.infotext])
    return found
