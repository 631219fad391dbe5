"""The floors of the house: who may import whom, read from the imports themselves."""
import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (
    {"core", "networks"}, {"sampling", "imaging"}, {"families", "prompts"}, {"checkpoints"}, {"adapters", "upscaling"},
    {"pipeline", "training"}, {"jobs", "demo"}, {"model_facts"}, {"tools"}, {"engine", "errands", "extension_loader"}, {"client"}, {"webui", "compat", "cli"}, {"launch"},
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FACES = {"webui", "cli"}
FACES_MAY = {"engine", "extension_loader", "errands", "client", "core", "pipeline.request", "pipeline.parameters", "pipeline.infotext", "pipeline.extension", "imaging.metadata"}
TORCH_FREE = (
    "core.errors", "core.paths", "core.files", "core.options", "core.settings", "core.hardware", "core.hashing", "core.progress",
    "pipeline.request", "pipeline.parameters", "pipeline.infotext", "pipeline.provenance", "imaging.metadata", "prompts.grammar",
    "sampling.catalogue", "jobs.store", "engine", "extension_loader", "pipeline.extension", "errands", "client", "cli",
)


def sources() -> list[Path]:
    """All but extensions, which are visitors like those of users."""
    rooms = (path for path in (ROOT / "modules").rglob("*.py") if "extensions-builtin" not in path.parts)
    return sorted([ROOT / "launch.py", *rooms, *(ROOT / "webui").rglob("*.py")])


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[:2] == ("modules", "__init__"):
        return "modules"
    return parts[1] if parts[0] == "modules" and len(parts) > 1 else parts[0]


def imports(path: Path) -> set[str]:
    """Dotted names of our own modules that this file imports, wherever in the file the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if (ROOT / Path(*name.split("."))).with_suffix(".py").exists() else node.module for name in submodules)
    return {name for name in found if name.split(".")[0] in ("modules", "webui", "launch")}


def room_in(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "modules" and len(parts) > 1 else parts[0]


def test_no_import_climbs_a_floor():
    climbing = []
    for path in sources():
        room = room_of(path)
        if room in ("modules", "launch"):
            continue
        for name in imports(path):
            other = room_in(name)
            if other != room and FLOOR[other] >= FLOOR[room]:
                climbing.append(f"{path.relative_to(ROOT)} -> {name}")
    assert not climbing, "\n".join(climbing)


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in sources()} - {"modules"}
    assert rooms <= set(FLOOR), rooms - set(FLOOR)


def test_faces_speak_to_the_engine_and_to_values_only():
    beyond = []
    for path in sources():
        if room_of(path) in FACES:
            for name in imports(path):
                rest = name.removeprefix("modules.")
                doors = FACES_MAY | {room_of(path)}
                if name.startswith("modules.") and not any(rest == door or rest.startswith(door + ".") for door in doors):
                    beyond.append(f"{path.relative_to(ROOT)} -> {name}")
    assert not beyond, "\n".join(beyond)


def test_the_engine_and_all_below_it_know_no_page():
    gradio = []
    for path in sources():
        if room_of(path) != "webui" or "api" in path.relative_to(ROOT).parts:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                gradio += [str(path.relative_to(ROOT)) for name in names if name.split(".")[0] == "gradio"]
    assert not gradio, gradio


def test_no_module_is_in_a_circle_of_imports():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sources()}
    arrows = {name: {other for other in imports(path) if other in files and other != name} for name, path in files.items()}
    while True:                                             # take away what imports nothing that is left; a circle remains
        leaves = {name for name, others in arrows.items() if not others & arrows.keys()}
        if not leaves:
            break
        arrows = {name: others for name, others in arrows.items() if name not in leaves}
    assert not arrows, sorted(arrows)


def test_no_function_declares_a_global():
    found = [f"{path.relative_to(ROOT)}:{node.lineno}" for path in sources()
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Global)]
    assert not found, found


def test_no_error_is_swallowed():
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            broad = isinstance(node, ast.ExceptHandler) and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))
            if broad and all(isinstance(line, ast.Pass) for line in node.body):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, found


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_must_start_at_once_imports_no_torch(name):
    code = f"import sys, json, modules.{name}; print(json.dumps([m for m in ('torch', 'gradio', 'transformers') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_only_one_module_reads_pickles():
    found = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and any(alias.name in ("pickle", "_pickle", "dill", "joblib") for alias in node.names):
                found.add(str(path.relative_to(ROOT)))
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                found.add(str(path.relative_to(ROOT)))
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.jit.load"):
                found.add(str(path.relative_to(ROOT)))
    assert found <= {"modules/checkpoints/read.py", "modules/checkpoints/pickles.py"}, found
