"""Watching one job from a page: the job runs in the engine, the page only looks, so a closed tab loses nothing.

The browser remembers the job's id. A timer asks how it stands; a page that is opened again asks once and goes on watching.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from modules.core.errors import NotFoundError
from modules.engine import Engine, Job
from webui.parts import said

PERIOD = 0.4                                                # seconds between two looks


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The parts of a tab in which a job is seen.

    job: its id, kept by the browser. seen: number of the preview that is shown. texts: (infotext, file) of each picture in the gallery;
    chosen: which of them is looked at.
    """

    job: gr.BrowserState
    seen: gr.State
    texts: gr.State
    chosen: gr.State
    timer: gr.Timer
    generate: gr.Button
    interrupt: gr.Button
    skip: gr.Button
    progress: gr.Markdown
    live: gr.Markdown
    gallery: gr.Gallery
    infotext: gr.Textbox
    note: gr.Markdown
    replay: gr.Button
    inspect: gr.Button
    redraw: gr.Button

    @property
    def outputs(self) -> list[Any]:
        return list(vars(self).values())

    def busy(self, on: bool) -> dict[Any, Any]:
        """Generate gives its place to Interrupt and Skip while a job is watched."""
        return {self.generate: gr.update(visible="hidden" if on else True), self.interrupt: gr.update(visible=True if on else "hidden"),
                self.skip: gr.update(visible=True if on else "hidden"), self.timer: gr.Timer(active=on)}

    def begun(self, job: Job) -> dict[Any, Any]:
        """A job has been submitted: from now on the page watches it."""
        return {**self.busy(True), self.job: job.id, self.seen: 0, self.note: "", self.live: gr.update(value="", visible=True),
                self.progress: said.bar(job.progress, job.position), self.gallery: gr.update(visible="hidden")}

    def failed(self, error: Exception) -> dict[Any, Any]:
        """Nothing runs, and this is why."""
        return {**self.busy(False), self.progress: "", self.note: said.note(said.trouble(error), "bad"),
                self.live: gr.update(value="", visible="hidden"), self.gallery: gr.update(visible=True)}

    def look(self, engine: Engine, job_id: str, seen: int) -> dict[Any, Any]:
        """What has changed since the last look."""
        try:
            job = engine.job(job_id)
        except NotFoundError:
            return {**self.busy(False), self.job: "", self.progress: "",
                    self.live: gr.update(visible="hidden"), self.gallery: gr.update(visible=True)}
        return self.finished(engine, job) if job.ended else self.running(job, seen)

    def running(self, job: Job, seen: int) -> dict[Any, Any]:
        view = job.progress
        changes: dict[Any, Any] = {self.progress: said.bar(view, job.position)}
        if view.preview_id > seen:                          # the browser fetches the picture itself: nothing large goes through the queue
            source = f"easel/v1/jobs/{job.id}/preview?number={view.preview_id}"
            changes |= {self.live: said.picture(source, "Preview of the picture being drawn"), self.seen: view.preview_id}
        return changes

    def finished(self, engine: Engine, job: Job) -> dict[Any, Any]:
        """The pictures as they lie on disk, so that what is downloaded from the page is the saved file with all it carries."""
        texts, gone = [], []
        for row in job.pictures():
            try:
                texts.append((row.infotext, str(engine.tools.picture_file(job.id, row.index))))
            except NotFoundError as error:
                gone.append((str(error), "warn"))
        return {
            **self.busy(False), self.progress: "", self.live: gr.update(value="", visible="hidden"), self.seen: 0, self.texts: texts,
            self.gallery: gr.update(value=[file for _, file in texts], selected_index=0 if texts else None, visible=True),
            self.infotext: texts[0][0] if texts else "", self.chosen: 0,
            self.replay: gr.update(interactive=bool(texts)), self.inspect: gr.update(interactive=bool(texts)),
            self.redraw: gr.update(interactive=bool(texts)),
            self.note: said.notes([*ending(job, len(texts)), *gone, *saved(job)]),
        }


def saved(job: Job) -> list[tuple[str, str]]:
    """Where the pictures lie in the data folder, as one quiet sentence."""
    places = [row.path.rpartition("/") for row in job.pictures() if row.place == "outputs"]
    if not places:
        return []
    first, last = places[0], places[-1]
    names = first[2] if len(places) == 1 else f"{first[2]} to {last[2]}"
    return [(f"Saved as {names} in {first[0]}.", "quiet")]


def ending(job: Job, pictures: int) -> list[tuple[str, str]]:
    """How a job ended, as (sentence, kind): its error, its warnings, or nothing when all is well."""
    sentences = [(text, "warn") for text in job.warnings]
    state = job.state
    if job.error is not None:
        sentences.insert(0, (str(job.error), "bad"))
    elif state == "interrupted":
        sentences.insert(0, ("Easel stopped before this job was finished; press Generate to make it again.", "warn"))
    elif state == "cancelled" and not pictures:
        sentences.insert(0, ("Stopped before the first picture was finished.", "plain"))
    return sentences

