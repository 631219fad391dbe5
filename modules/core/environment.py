"""The virtual environment beside launch.py: made, filled, mended, entered. Standard library only.

A stamp inside it holds the digest of each requirements file that was installed, so a start with nothing to install asks pip nothing.
"""
from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from modules.core.errors import WebUIError
from modules.core.pip import FULL, Pip
from modules.core.torch_builds import Build, Machine, build_for, machine

FOLDER = ".venv"
STAMP = "easel.json"
ASIDE = "-broken"                                         # behind the name of an environment that was replaced, until the new one is whole
ENTERED = "EASEL_ENTERED"                                   # the id of the process that entered: children inherit it, but not the id
NAMES_IN_A_VENV = frozenset({"bin", "lib", "lib64", "include", "share", "scripts", "pyvenv.cfg", STAMP, ".gitignore", "constraints.txt"})
Say = Callable[[str], None]


class StartError(WebUIError):
    """Easel cannot start. exit_code: what the process ends with."""

    code = "cannot_start"
    status = 500

    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def python_of(folder: Path, windows: bool = os.name == "nt") -> Path:
    """The Python inside an environment, where this system puts it."""
    return folder / "Scripts" / "python.exe" if windows else folder / "bin" / "python"


def inside(root: Path) -> bool:
    """Whether this process is the environment's Python and was entered by `enter`, so that its surroundings are set."""
    entered = os.environ.get(ENTERED) in (str(os.getpid()), str(os.getppid()))
    at_home = Path(sys.prefix).resolve() == (root / FOLDER).resolve()
    if entered and not at_home and os.environ.get(ENTERED) == str(os.getpid()):
        raise StartError(f"The Python in {root / FOLDER} does not belong to it; delete that folder and start again.")
    return entered and at_home


def prepare(root: Path, log: Path, *, for_tests: bool = False, torch_index: str | None = None, say: Say = print) -> Path:
    """An environment in which everything required is installed; its Python. Raises StartError with what to do."""
    folder = root / FOLDER
    files = [root / "requirements.txt", *([root / "requirements-dev.txt"] if for_tests else [])]
    wanted = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    stamp = _stamp(folder)
    index = torch_index or stamp.get("torch_index")
    works = _works(folder)
    if works and stamp.get("files", {}).items() >= wanted.items() and index == stamp.get("torch_index"):
        return python_of(folder)
    if not works:
        _make(folder, log, say)
        stamp = {}
    _install(folder, files[-1], log, index, index != stamp.get("torch_index"), say)
    both = {**stamp.get("files", {}), **wanted}
    (folder / STAMP).write_text(json.dumps({"files": both, "torch_index": index}, indent=1), encoding="utf-8")
    shutil.rmtree(folder.with_name(folder.name + ASIDE), ignore_errors=True)
    say("Everything is installed.")
    return python_of(folder)


def enter(python: Path, words: Sequence[str], windows: bool = os.name == "nt") -> int:
    """Go on as this Python with these words. Returns the exit code on Windows; elsewhere the process is replaced."""
    os.environ.update(surroundings())
    os.environ[ENTERED] = str(os.getpid())
    sys.stdout.flush()
    sys.stderr.flush()
    if not windows:
        os.execv(python, [str(python), *words])
    signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C reaches the child as well; it ends, and we tell how
    return subprocess.call([str(python), *words])


def surroundings() -> dict[str, str]:
    """Environment variables that must stand before the process starts or a library loads: no telemetry, no network."""
    wanted = {
        "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
        "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def settle(data: Path) -> None:
    """Send what libraries write of their own accord into the data folder. Raises StartError when it cannot be written."""
    cache = data / "cache"
    places = {
        "GRADIO_TEMP_DIR": cache / "gradio", "HF_HOME": cache / "huggingface", "TORCH_HOME": cache / "torch", "XDG_CACHE_HOME": cache,
        "TORCHINDUCTOR_CACHE_DIR": cache / "inductor", "TRITON_CACHE_DIR": cache / "triton", "MPLCONFIGDIR": cache / "matplotlib",
        "CUDA_CACHE_PATH": cache / "cuda", "NUMBA_CACHE_DIR": cache / "numba",
        "TMPDIR": cache / "tmp", "TEMP": cache / "tmp", "TMP": cache / "tmp",
    }
    try:
        (cache / "tmp").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"The data folder {data} cannot be written ({error.strerror}); choose another with --data-dir.") from error
    os.environ.update({name: str(path) for name, path in places.items()})


def _stamp(folder: Path) -> dict:
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else {}


def _works(folder: Path) -> bool:
    """Whether the environment's Python runs and is the version that its packages were installed for."""
    python = python_of(folder)
    if not python.exists() or not (folder / "pyvenv.cfg").is_file():
        return False
    ask = "import sys; print(sys.version_info[0], sys.version_info[1])"
    try:
        done = subprocess.run([str(python), "-E", "-S", "-c", ask], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = done.stdout.split()
    if done.returncode or len(version) != 2:
        return False
    packages = folder / "Lib" if os.name == "nt" else folder / "lib" / f"python{version[0]}.{version[1]}"
    return (packages / "site-packages").is_dir()


def _make(folder: Path, log: Path, say: Say) -> None:
    """A fresh environment in `folder`. One that was there is moved aside, and comes back when the new one cannot be made."""
    if importlib.util.find_spec("ensurepip") is None:
        raise StartError(f"This Python has no ensurepip, so it cannot make an environment; {_apt()}, then start again.")
    aside = folder.with_name(folder.name + ASIDE)
    if folder.is_symlink() or folder.is_file():
        raise StartError(f"{folder} is not a folder; move it away and start again.")
    if folder.is_dir():
        strange = sorted(entry.name for entry in folder.iterdir() if entry.name.lower() not in NAMES_IN_A_VENV)
        if strange and not (folder / "pyvenv.cfg").exists():
            raise StartError(f"{folder} is no Python environment (it holds {strange[0]}); move it away and start again.")
        if aside.exists():
            raise StartError(f"The environment in {folder} is broken, and an earlier one lies in {aside}; "
                             "delete what you do not need and start again.")
        say(f"The environment in {FOLDER} is broken or was made for another Python; making it anew.")
        folder.rename(aside)
    else:
        say(f"Making an environment for the packages in {FOLDER}.")
    done = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0 and _works(folder):
        return
    said = done.stdout + done.stderr
    shutil.rmtree(folder, ignore_errors=True)               # what we began a moment ago
    if aside.exists():
        aside.rename(folder)
    _keep(log, said)
    if any(sign in said for sign in FULL):
        raise StartError(f"There is no space left on the disk of {folder}; free about 3 GB and start again.")
    if "ensurepip" in said:
        raise StartError(f"Python could not put pip into {folder}; {_apt()}, then start again.")
    raise StartError(f"The environment in {folder} could not be made; what Python said stands in {log}.")


def _apt() -> str:
    return f"on Debian or Ubuntu run: apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv"


def _install(folder: Path, requirements: Path, log: Path, index: str | None, again: bool, say: Say) -> None:
    """torch first, from where this machine's build lies; then the rest, with torch held as it is."""
    pip = Pip(python_of(folder), log, say)
    if not pip.works():
        raise StartError(f"The environment in {folder} has no working pip; delete that folder and start again.")
    this = machine()
    build = _build(this, index)
    pins = _pins(folder.parent / "requirements.txt")
    if not pip.version_of("torch"):
        _look_at_space(folder, build)
    if pip.version_of("torch").split("+")[0] != pins["torch"].partition("==")[2] or again:
        source = index or (None if pip.has_own_source() else build.index)
        say(f"Found {this.described}. Installing torch{f' from {source}' if source else ''}; this is the largest part.")
        words = [pins[name] for name in ("torch", "torchvision") if name in pins and (source or name == "torch")]  # the vendor's pair
        pip.install([*words, *(["--index-url", source] if source else []), *(["--force-reinstall"] if again else [])], "torch")
    constraint = folder / "constraints.txt"
    held = pip.version_of("torch")
    constraint.write_text(f"torch=={held}\n" if held else "", encoding="utf-8")
    say(f"Installing the packages in {requirements.name}.")
    pip.install(["-r", str(requirements), "-c", str(constraint)], requirements.name)


def _build(this: Machine, index: str | None) -> Build:
    build = build_for(this)
    if build is None and index is None:
        raise StartError(f"torch is not made for {this.system} on {this.cpu} any more; name an index that has it with --torch-index URL.")
    return build or Build(index, 3)


def _pins(requirements: Path) -> dict[str, str]:
    """Package name -> its exact line, for the lines of the form name==version."""
    lines = (line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    return {line.partition("==")[0]: line for line in lines if "==" in line}


def _look_at_space(folder: Path, build: Build) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < build.gigabytes:
        raise StartError(f"The packages need about {build.gigabytes} GB and the disk of {folder} has {free:.1f} GB free; "
                         "make room and start again.")


def _keep(log: Path, text: str) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(text + "\n")
