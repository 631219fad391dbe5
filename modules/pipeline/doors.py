"""The extensions of one job, asked at each door of extension.py. Whatever one of them does, the job goes on.

An extension that raises (SystemExit too), or gives what does not fit, is named in `warnings` and left out for the rest of the job. It is
given copies, so that what it changes in place reaches nobody; an error of the model that only passes through it is not its own.
"""
from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from modules.core.errors import Cancelled
from modules.families.base import Model
from modules.imaging.metadata import pixels_sha256
from modules.pipeline import parameters
from modules.pipeline.extension import Extension, Generate
from modules.pipeline.plan import Batch
from modules.pipeline.request import Picture, Request, Result
from modules.sampling.denoise import Wrap, WrapModel
from modules.sampling.guidance import Rows
from modules.sampling.samplers import Denoised

log = logging.getLogger("easel.extensions")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Misfit(Exception):
    """An extension gave what the door cannot take."""


class Doors:
    """extensions: in their order; the first stands nearest to the model. warnings grows while the job runs."""

    def __init__(self, extensions: Sequence[Extension], request: Request) -> None:
        self._models: list[Model] = []
        self.warnings: list[str] = []
        self._asked = list(extensions)
        for extension in extensions:                        # one with controls is asked where the request sets one of them
            controls = self._attempt(extension, "controls", partial(extension.controls, "txt2img"))
            if controls and extension.name not in request.extra:
                self._asked.remove(extension)

    # ---- doors

    def prepare(self, request: Request) -> Request:
        """The request as the extensions want it. Each may change it; one whose request cannot be computed is left out."""
        def fitting(found: Any) -> Request:
            _of(Request, found)
            parameters.check(found)
            return dataclasses.replace(found, extra=request.extra)

        for extension in self._at("prepare"):
            request = self._ask(extension, "prepare", request, fitting, extra=_copied(request.extra), notes=_copied(request.notes))
        return request

    def plan(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches as the extensions want them, with the very pictures that were planned."""
        wanted = sorted(slot.index for batch in batches for slot in batch.slots)

        def fitting(found: Any) -> tuple[Batch, ...]:
            made = tuple(_of(Batch, batch) for batch in found)
            if sorted(slot.index for batch in made for slot in batch.slots) != wanted:
                raise Misfit("its batches have other pictures than were asked for")
            return made

        for extension in self._at("plan"):
            batches = self._ask(extension, "plan", tuple(batches), fitting)
        return batches

    def drive(self, request: Request, generate: Generate) -> Result | None:
        """What a selectable extension that the request names makes of it; None where there is none."""
        for extension in self._at("drive"):
            if extension.selectable and extension.name in request.extra:
                plain = dataclasses.replace(request, extra={name: value for name, value in request.extra.items() if name != extension.name})
                through = _Passing(generate)
                found = self._ask(extension, "drive", plain, lambda found: _of(Result, found), through, passing=through)
                return found if isinstance(found, Result) else None
        return None

    def latent(self, latent: Tensor, batch: Batch) -> Tensor:
        def fitting(found: Any) -> Tensor:
            if _of(Tensor, found).shape != latent.shape or not bool(found.isfinite().all()):
                raise Misfit("it gave a latent of another shape, or values that are no numbers")
            return found.to(latent)

        for extension in self._at("latent"):
            latent = self._ask(extension, "latent", latent, fitting, batch, kept=latent.clone())
        return latent

    def picture(self, picture: Picture, batch: Batch) -> Picture:
        """The picture behind all `picture` and `saving` doors; where its pixels changed, its record says so."""
        for door, rest in (("picture", (batch,)), ("saving", ())):
            for extension in self._at(door):
                picture = self._ask(extension, door, picture, _same_index(picture.index), *rest, image=picture.image.copy())
        told = picture.record.get("pixels")
        if told is not None and told["sha256"] != pixels_sha256(picture.image):
            pixels = {"sha256": pixels_sha256(picture.image), "width": picture.image.width, "height": picture.image.height}
            picture = dataclasses.replace(picture, record={**picture.record, "pixels": pixels})
        return picture

    def finish(self, result: Result) -> Result:
        """The result as the extensions want it, with the warnings of all doors."""
        for extension in self._at("finish"):
            result = self._ask(extension, "finish", result, lambda found: _of(Result, found))
        return dataclasses.replace(result, warnings=(*result.warnings, *dict.fromkeys(self.warnings)))

    def borrowed(self, model: Model) -> None:
        """Tell of a model that this job has not had before."""
        if not any(model is known for known in self._models):
            self._models.append(model)
            for extension in self._at("model_loaded"):
                self._ask(extension, "model_loaded", model, lambda found: None)

    # ---- around the model

    @contextlib.contextmanager
    def adapted(self, model: Model, batch: Batch) -> Iterator[None]:
        """Inside, the extensions have done to the model what they do. Afterwards no hook and no swapped method of theirs is left on it."""
        asked = self._at("adapt")
        if not asked:
            yield
            return
        with _hooks_kept(model.unet, model.vae, *(tower for tower in model.text if isinstance(tower, nn.Module))):
            entered: list[tuple[Extension, Any]] = []
            for extension in asked:
                entered += self._ask(extension, "adapt", model, partial(_entered, extension), batch, instead=[])
            try:
                yield
            finally:
                for extension, manager in reversed(entered):
                    self._attempt(extension, "adapt", partial(manager.__exit__, None, None, None))

    def wraps(self, batch: Batch) -> list[Wrap]:
        """One wrap for each extension that has a door outside the guidance."""
        def wrap(extension: Extension) -> Wrap:
            return lambda inner: self._around(
                extension, "wrap", inner, lambda passing: extension.wrap(passing, batch), lambda x, sigma: (x.clone(), sigma),
                lambda found, x, sigma: _denoised(found, x))
        return [wrap(extension) for extension in self._at("wrap")]

    def wrap_models(self, batch: Batch) -> list[WrapModel]:
        """One for each that has a door inside the guidance."""
        def wrap(extension: Extension) -> WrapModel:
            return lambda inner: self._around(
                extension, "wrap_model", inner, lambda passing: extension.wrap_model(passing, batch),
                lambda rows: (dataclasses.replace(rows, x=rows.x.clone()),), lambda found, rows: _clean_rows(found, rows))
        return [wrap(extension) for extension in self._at("wrap_model")]

    def _around(self, extension: Extension, door: str, inner: Callable[..., Any], make: Callable[[Any], Any],
                copied: Callable[..., tuple[Any, ...]], fitting: Callable[..., Any]) -> Any:
        """The extension's callable around the inner one. Should it fail in a call, the inner answer of that call is taken, asked once."""
        passing = _Passing(inner)
        made = self._attempt(extension, door, lambda: _callable(make(passing)), passing)

        def call(*arguments: Any) -> Any:
            if made is None or extension not in self._asked:
                return inner(*arguments)
            passing.answers.clear()
            given = copied(*arguments)
            found = self._attempt(extension, door, lambda: fitting(made(*given), *arguments), passing)
            if found is None:
                found = passing.answer_to(given[0])
            return inner(*arguments) if found is None else found

        return call

    # ---- asking

    def _at(self, door: str) -> list[Extension]:
        always = door == "prepare"
        return [extension for extension in self._asked if always or getattr(type(extension), door) is not getattr(Extension, door)]

    def _ask(self, extension: Extension, door: str, value: Any, fitting: Callable[[Any], Any], *rest: Any,
             passing: _Passing | None = None, instead: Any = None, kept: Any = None, **changes: Any) -> Any:
        """What it gives for a copy of the value, or the value itself (`instead`) where it fails."""
        given = value if kept is None else kept
        given = dataclasses.replace(given, **changes) if changes else given
        found = self._attempt(extension, door, lambda: fitting(getattr(extension, door)(given, *rest)), passing)
        return found if found is not None else value if instead is None else instead

    def _attempt(self, extension: Extension, door: str, work: Callable[[], Any], passing: _Passing | None = None) -> Any:
        """What the work gives; None where the extension failed, which is then left out for the rest of the job."""
        try:
            return work()
        except Cancelled:
            raise
        except (Exception, SystemExit) as error:
            if passing is not None and passing.raised is error:
                raise
            log.warning("The extension %s failed at %s.", extension.name, door, exc_info=error)
            why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            self.warnings.append(f"The extension {extension.name} was left out: it failed at “{door}” ({why}).")
            self._asked = [other for other in self._asked if other is not extension]
            return None


class _Passing:
    """What an extension calls inside. Remembers what came out of it, so that it is neither blamed for errors nor asked twice."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self._inner = inner
        self.raised: BaseException | None = None
        self.answers: list[tuple[Any, Any]] = []

    def __call__(self, *arguments: Any) -> Any:
        try:
            answer = self._inner(*arguments)
        except BaseException as error:
            self.raised = error
            raise
        self.answers.append((arguments[0], _cloned(answer)))
        return answer

    def answer_to(self, asked: Any) -> Any:
        """The answer to this very argument; None when it was not asked."""
        return next((answer for argument, answer in self.answers if argument is asked), None)


def _cloned(answer: Any) -> Any:
    if isinstance(answer, Denoised):
        return Denoised(answer.value.clone(), None if answer.uncond is None else answer.uncond.clone())
    return answer.clone() if isinstance(answer, Tensor) else answer


def _copied(values: Any) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in values.items()}


def _of(kind: type, found: Any) -> Any:
    if not isinstance(found, kind):
        raise Misfit(f"it gave a {type(found).__name__} where a {kind.__name__} is wanted")
    return found


def _callable(found: Any) -> Any:
    if not callable(found):
        raise Misfit(f"it gave a {type(found).__name__} where a function is wanted")
    return found


def _same_index(index: int) -> Callable[[Any], Picture]:
    def fitting(found: Any) -> Picture:
        if _of(Picture, found).index != index:
            raise Misfit("it gave a picture of another index")
        return dataclasses.replace(found)
    return fitting


def _denoised(found: Any, x: Tensor) -> Denoised:
    if _of(Denoised, found).value.shape != x.shape:
        raise Misfit("it gave a latent of another shape")
    return Denoised(*found)


def _clean_rows(found: Any, rows: Rows) -> Tensor:
    if _of(Tensor, found).shape != rows.x.shape:
        raise Misfit("it gave latents of another shape")
    return found.to(rows.x)


def _entered(extension: Extension, manager: Any) -> list[tuple[Extension, Any]]:
    if not hasattr(manager, "__enter__"):
        raise Misfit(f"it gave a {type(manager).__name__} where a context manager is wanted")
    manager.__enter__()
    return [(extension, manager)]


@contextlib.contextmanager
def _hooks_kept(*networks: nn.Module) -> Iterator[None]:
    """Afterwards every module has the hooks and the methods it had before."""
    modules = [module for network in networks for module in network.modules()]
    before = [({name: dict(getattr(module, name)) for name in HOOKS if hasattr(module, name)}, module.__dict__.get("forward"))
              for module in modules]
    try:
        yield
    finally:
        for module, (hooks, forward) in zip(modules, before, strict=True):
            for name, known in hooks.items():
                found = getattr(module, name)
                for key in [key for key in found if key not in known]:
                    del found[key]
            if module.__dict__.get("forward") is not forward:
                if forward is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = forward


