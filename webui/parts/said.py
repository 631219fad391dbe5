"""Sentences and small marks as HTML. All that comes from a user, a file or an error is escaped here, and only here is HTML made."""
import logging
from html import escape

from modules.core.errors import WebUIError
from modules.core.progress import ProgressView

log = logging.getLogger("easel.page")
STAGES = {"": "Starting", "loading": "Loading the model", "encoding": "Reading the prompt", "sampling": "Drawing",
          "decoding": "Turning the result into pixels", "saving": "Saving"}


def note(text: str, kind: str = "plain") -> str:
    """One sentence. kind: plain, good, warn or bad; errors are announced to screen readers."""
    role = "alert" if kind == "bad" else "status"
    return f'<p class="note {kind}" role="{role}">{_text(text)}</p>' if text else ""


def _text(text: str) -> str:
    """Escaped, and on one line: an empty line would end the block of HTML for Markdown."""
    return escape(text).replace("\r", "").replace("\n", "&#10;")


def notes(sentences: list[tuple[str, str]]) -> str:
    """Several (sentence, kind), one below the other."""
    return "".join(note(text, kind) for text, kind in sentences)


def trouble(error: Exception) -> str:
    """What went wrong, in one sentence. Of our own faults no more than that they happened; the rest goes to the log."""
    if isinstance(error, WebUIError) and str(error):
        return str(error)
    log.error("The page could not do what was asked", exc_info=error)
    return "Easel made a mistake here; its log says what happened."


def counter(tokens: int, limit: int) -> str:
    """How much of the prompt's chunk is filled: tokens of limit."""
    return f'<span class="count" title="tokens in the prompt / where its chunk ends">{tokens}/{limit}</span>'


def bar(view: ProgressView, waiting: int = -1) -> str:
    """The progress line of a job. waiting: jobs before it in the queue, -1 when it runs."""
    if waiting >= 0:
        words = "Waiting for its turn" + (f", {waiting} before it" if waiting else "")
        return _bar(0.0, words, "")
    words = STAGES.get(view.stage, view.stage.capitalize())
    if view.interrupted:
        words = "Stopping"
    elif view.skipped:
        words = "Skipping this batch"
    facts = []
    if view.batches > 1:
        facts.append(f"batch {min(view.batch + 1, view.batches)} of {view.batches}")
    if view.steps and view.stage == "sampling":
        facts.append(f"step {min(view.step, view.steps)} of {view.steps}")
    left = view.eta
    if left is not None and view.stage == "sampling":
        facts.append(f"{duration(left)} left")
    return _bar(view.fraction, words, ", ".join(facts))


def _bar(fraction: float, words: str, facts: str) -> str:
    percent = round(100 * fraction)
    return (f'<div class="bar"><progress max="100" value="{percent}" aria-label="Progress">{percent} %</progress>'
            f'<div class="words"><span>{_text(words)}</span><span>{_text(facts)}</span></div></div>')


def duration(seconds: float) -> str:
    """8 s, 2 min 5 s, 1 h 3 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def picture(source: str, words: str) -> str:
    """An image by its address."""
    return f'<div><img src="{escape(source, quote=True)}" alt="{escape(words, quote=True)}"></div>'


def table(rows: list[tuple[str, str]], guessed: tuple[str, ...] = ()) -> str:
    """Names and values in two columns. guessed: names whose values nobody said."""
    mark = ' <span class="guess">guessed</span>'
    lines = "".join(f"<tr><th scope=\"row\">{_text(name)}</th><td>{_text(value)}{mark if name in guessed else ''}</td></tr>"
                    for name, value in rows)
    return f'<table class="facts"><tbody>{lines}</tbody></table>' if rows else ""
