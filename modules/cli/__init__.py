"""The command line: words to pictures without a page. Its flags are made from the table of parameters.

The work is done by an Engine of its own, by the Easel that already holds the data folder, or by the one at --server.
Exit codes: 0 done, 1 a sentence says what failed, 2 the command line is wrong, 130 stopped by Ctrl-C; replay has its own.
"""
from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import io
import json
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from modules.cli import import_a1111, models, samplers, schedule, vae_bench
from modules.cli.makers import Made, maker, say
from modules.cli.words import print_json, shower, watched
from modules.core.errors import NotFoundError, RequestError, SaveError, WebUIError
from modules.core.files import write_atomically
from modules.core.paths import Paths
from modules.errands import demo_report as judge
from modules.errands import history, sampler_grid, train
from modules.errands import vae_bench as bench
from modules.imaging import metadata
from modules.pipeline import infotext, parameters

FORMATS = (("jpeg", "jpg"), ("jpg", "jpg"), ("png", "png"), ("webp", "webp"))
REPLAY_CANNOT = 2
LARGEST = 1 << 20                                           # pixels that a picture is redrawn with unless a size is asked for


def main(argv: Sequence[str], paths: Paths) -> int:
    """Run one command (its name first). Returns the exit code; a wrong command line leaves with SystemExit(2)."""
    flags = parser().parse_args(list(argv))
    with _log_to(paths), _terminable():
        try:
            return flags.run(flags, paths)
        except WebUIError as error:
            say(str(error))
            return REPLAY_CANNOT if flags.command == "replay" else 1
        except KeyboardInterrupt:
            say("Stopped.")
            return 130
        except BrokenPipeError:                             # the reader of our output went away
            return 1


# ---- flags

def parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    made = argparse.ArgumentParser(prog="launch.py", allow_abbrev=False)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    draw = _command(commands, "txt2img", txt2img, "make pictures from words")
    draw.add_argument("prompt", help="what the picture shows")
    draw.add_argument("-o", "--output", type=Path, metavar="FILE",
                      help="write the picture here instead of the outputs folder; further ones get -2, -3 ... before the ending")
    draw.add_argument("--json", action="store_true", help="print what was made as JSON")
    _parameters(draw, parameters.PARAMETERS)
    redraw = _command(commands, "img2img", img2img, "make pictures from a picture and words, or only its masked part anew")
    redraw.add_argument("picture", type=Path, help="the file to begin from")
    redraw.add_argument("prompt", nargs="?", default="", help="what the picture shows")
    redraw.add_argument("--mask", type=Path, metavar="FILE", help="a picture as large: white is painted anew, or what is opaque")
    redraw.add_argument("--depth", type=Path, metavar="FILE", help="a depth map as large, light is near, for models that are told depth")
    redraw.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the picture here instead of the outputs folder")
    redraw.add_argument("--json", action="store_true", help="print what was made as JSON")
    _parameters(redraw, (*parameters.PARAMETERS, *parameters.INIT))
    info = _command(commands, "png-info", png_info, "print what a picture says about how it was made")
    info.add_argument("file", type=Path)
    info.add_argument("--json", action="store_true", help="print all of it as JSON, the record included")
    again = _command(commands, "replay", replay, "make a picture again: exit code 0 identical, 1 different, 2 cannot")
    again.add_argument("file", type=Path)
    again.add_argument("--json", action="store_true", help="print the verdict as JSON")
    models.add(_command(commands, "models", models.listed, "list the models that were found, describe, convert, prune, merge, fetch them"))
    import_a1111.add(_command(commands, "import-a1111", import_a1111.moved, "take over what A1111's web UI has in its folder"))
    past = _command(commands, "jobs", jobs, "list the newest jobs and their states")
    past.add_argument("--limit", type=int, default=20, metavar="N")
    past.add_argument("--json", action="store_true", help="print the list as JSON")
    up = _command(commands, "resume", resume, "take an unfinished job up at its first missing picture")
    up.add_argument("id")
    up.add_argument("--force", action="store_true", help="even if the program ended twice while it ran")
    up.add_argument("--json", action="store_true", help="print what was made as JSON")
    learn = _command(commands, "train", learned, "train a model or a VAE as a recipe says, or go on with it")
    learn.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    learn.add_argument("--quiet", action="store_true", help="no progress line")
    judged = _command(commands, "demo-report", demo_report, "measure how well a model follows words about storybook scenes")
    judged.add_argument("--model", default="", metavar="NAME", help="a checkpoint of the list (default: the embedded one)")
    judged.add_argument("--count", type=int, default=256, metavar="N", help="prompts, drawn with and without unknown words (default: 256)")
    judged.add_argument("--sheet", type=Path, metavar="FILE", help="a .png for the contact sheet (default: demo-report.png in the data)")
    judged.add_argument("--quiet", action="store_true", help="no progress line")
    samplers.add(_command(commands, "samplers", samplers.run, "list the samplers, or draw one prompt with all of them side by side"),
                 sampler_grid)
    vae_bench.add(_command(commands, "vae-bench", vae_bench.run, "compare VAEs: the same latent, and a picture there and back"), bench)
    schedule.add(_command(commands, "schedule", schedule.run, "show the noise levels of schedules, as numbers and as curves"))
    for command in (draw, redraw, again, up):
        command.add_argument("--server", metavar="URL", help="let the Easel at this address do the work")
        command.add_argument("--auth", metavar="USER:PASSWORD", help="credentials for that server")
        command.add_argument("--quiet", action="store_true", help="no progress line")
    return made


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    made.set_defaults(run=run)
    return made


def _parameters(made: argparse.ArgumentParser, rows: Sequence[parameters.Parameter]) -> None:
    """A flag for each row of the tables. Values stay texts here; the table turns them into numbers and refuses what does not fit."""
    made.add_argument("--extension", action="append", metavar="NAME.CONTROL=VALUE",
                      help="set a control of an extension, for example Guidance.rescale=0.7; a name that is not here gets those that are")
    groups: dict[str, Any] = {}
    for row in rows:
        if row.field == "prompt":
            continue
        group = groups.setdefault(row.section, made.add_argument_group(row.section))
        name, text = f"--{row.field.replace('_', '-')}", row.help.replace("%", "%%")
        if row.kind == "bool":
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif row.kind == "list":
            group.add_argument(name, action="append", metavar="NAME", help=text)
        else:
            shown = "{" + ",".join(row.choices) + "}" if isinstance(row.choices, tuple) and row.choices else row.kind.upper()
            group.add_argument(name, metavar=shown, help=text)


def _values(flags: argparse.Namespace) -> dict[str, Any]:
    """The Request fields that were given."""
    given = vars(flags)
    values = {row.field: given[row.field] for row in parameters.PARAMETERS if given.get(row.field) is not None}
    if flags.extension:
        values["extra"] = _extra(flags.extension)
    ending = flags.output.suffix.lower().lstrip(".") if flags.output else ""
    if ending and "image_format" not in values:
        if ending not in dict(FORMATS):
            raise RequestError(f"“{flags.output.name}” does not end in .png, .jpg or .webp; choose one of them.", field="image_format")
        values["image_format"] = dict(FORMATS)[ending]
    return values


def _extra(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """`Guidance.rescale=0.7`, ... as Request.extra; `NAME` alone chooses an extension that runs the whole request."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        told, sign, value = text.partition("=")
        name, dot, control = told.rpartition(".")
        if sign and not dot:
            raise RequestError(f"--extension takes NAME.CONTROL=VALUE, not “{text[:60]}”.", field="extra")
        values = found.setdefault((name if sign else told).strip(), {})
        if sign:
            values[control.strip()] = value
    return found


# ---- commands

def txt2img(flags: argparse.Namespace, paths: Paths) -> int:
    values = _values(flags)
    with maker(flags.server, flags.auth, paths) as making:
        made = making.make(values, save=flags.output is None, show=shower(flags))
    return _tell(made, flags, flags.output)


def img2img(flags: argparse.Namespace, paths: Paths) -> int:
    """Where no size was asked for: the picture's own, or its shape with a million pixels where it is larger."""
    given, values = vars(flags), _values(flags)
    init = {row.field: given[row.field] for row in parameters.INIT if given.get(row.field) is not None}
    if "mask_blur_x" in init:
        init.setdefault("mask_blur_y", init["mask_blur_x"])
    files = {name: _bytes(path) for name, path in (("image", flags.picture), ("mask", flags.mask), ("depth", flags.depth)) if path}
    with maker(flags.server, flags.auth, paths) as making:
        for name, file in files.items():
            init[name], size, notices = making.keep(file, "picture" if name == "image" else name)
            if name == "image" and "width" not in values and "height" not in values:
                values |= parameters.size_like(size, LARGEST)
            for notice in notices:
                say(notice)
        made = making.make({**values, "init": init}, save=flags.output is None, show=shower(flags))
    return _tell(made, flags, flags.output)


def resume(flags: argparse.Namespace, paths: Paths) -> int:
    with maker(flags.server, flags.auth, paths) as making:
        made = making.resume(flags.id, flags.force, show=shower(flags))
    return _tell(made, flags, None)


def replay(flags: argparse.Namespace, paths: Paths) -> int:
    file = _bytes(flags.file)
    with maker(flags.server, flags.auth, paths) as making:
        verdict = making.replay(file, show=shower(flags))
    if flags.json:
        print_json({**dataclasses.asdict(verdict), "exit_code": verdict.exit_code})
    else:
        print(verdict.sentence)
        if verdict.first_difference:
            print(f"First difference: {verdict.first_difference}")
    return verdict.exit_code


def learned(flags: argparse.Namespace, paths: Paths) -> int:
    """Ctrl-C ends it after the step, with its state on disk."""
    print(watched(lambda progress: train(flags.recipe, paths, progress), shower(flags)))
    return 0


def demo_report(flags: argparse.Namespace, paths: Paths) -> int:
    sheet, show = flags.sheet or paths.data / "demo-report.png", shower(flags)

    def tell(done: int, of: int) -> None:
        show(done / of, f"picture {done} of {of}", None, -1)

    lines, picture = judge(paths, flags.model, max(1, flags.count), tell)
    print("\n".join(lines))
    made = io.BytesIO()
    picture.save(made, "PNG")
    write_atomically(sheet, made.getvalue())
    print(f"Contact sheet: {sheet}")
    return 0


def png_info(flags: argparse.Namespace, paths: Paths) -> int:
    found = metadata.read(_bytes(flags.file))
    if flags.json:
        parsed = infotext.read(found.infotext)
        record = json.loads(found.record) if found.record else None
        print_json({"info": found.infotext, "parameters": infotext.with_defaults(parsed) if found.infotext else {}, "record": record,
                     "items": dict(found.items), "width": found.width, "height": found.height, "format": found.format,
                     "notices": list(found.notices)})
    else:
        print(found.infotext or "The picture carries no parameters.")
        if found.record:
            print(f"Record: {found.record}")
        for name, text in found.items.items():
            print(f"{name}: {text}")
    for notice in found.notices:
        say(notice)
    return 0


def jobs(flags: argparse.Namespace, paths: Paths) -> int:
    rows = history(paths, max(1, flags.limit))
    if flags.json:
        print_json([dataclasses.asdict(row) for row in rows])
        return 0
    for row in rows:
        prompt = " ".join(str(row.request.get("prompt", "")).split())[:60]
        print(f"{row.id}  {row.state:<12}{prompt}{'  ' + row.error if row.error else ''}")
    if not rows:
        print("There are no jobs yet.")
    return 0


# ---- words

def _tell(made: Made, flags: argparse.Namespace, output: Path | None) -> int:
    """Write the files, say where they are. 0 when the job is done."""
    told = []
    for number, (index, seed, text, complete, file, path) in enumerate(made.files):
        if output is not None:
            path = output if number == 0 else output.with_stem(f"{output.stem}-{number + 1}")
            write_atomically(path, file)
        told.append({"index": index, "seed": seed, "complete": complete, "path": str(path) if path else None, "infotext": text,
                     "file": None if path else base64.b64encode(file).decode("ascii")})
    for warning in made.warnings:
        say(warning)
    if flags.json:
        print_json({"job": made.job, "state": made.state, "pictures": told, "warnings": list(made.warnings)})
    else:
        for one in told:
            where = one["path"] or f"job {made.job}, picture {one['index']}"
            print(f"{where}  (seed {one['seed']}{'' if one['complete'] else ', incomplete'})")
    if made.state != "done":
        say(f"The job was {made.state}; `resume {made.job}` makes what is missing.")
        return 1
    return 0


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read ({error.strerror}).") from error


@contextlib.contextmanager
def _log_to(paths: Paths) -> Iterator[None]:
    """Tracebacks go to a file; the terminal gets sentences."""
    log = logging.getLogger("easel")
    try:
        folder = paths.data / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = logging.FileHandler(folder / "easel.log", encoding="utf-8", delay=True)
    except OSError as error:
        raise SaveError(f"The data folder {paths.data} cannot be written ({error.strerror}); choose another with --data-dir.") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before
        handler.close()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends in order: the running job is marked as interrupted and can be resumed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> NoReturn:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
