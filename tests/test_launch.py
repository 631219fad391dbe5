"""What happens before the environment stands. Small scripts in a temporary folder stand for Python, pip and the tools of graphics cards."""
import ast
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import launch
from modules.core import environment, flags, torch_builds
from modules.core.environment import StartError, prepare, python_of
from modules.core.pip import InstallError, Pip, reason
from modules.core.torch_builds import BUILDS, Build, build_for, machine
from webui.server import guard_for, listen_on, wants_browser

ROOT = Path(__file__).resolve().parent.parent
PYTHON = """#!/bin/sh
here="{home}"
echo "$@" >> "$here/calls"
case "$*" in
  *version_info*) echo "{version}" ;;
  *"pip --version"*) echo "pip 25" ;;
  *"config list"*) cat "$here/config" ;;
  *"pip install"*) cat "$here/says"; exit $(cat "$here/code") ;;
  *m.version*) cat "$here/torch" ;;
esac
"""


class Home:
    """A folder like the repository's, whose environment and whose Python are scripts that write down what they are asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.notes, self.template = folder / "easel", folder / "notes", folder / "template"
        for made in (self.root, self.notes):
            made.mkdir()
        for name, text in {"calls": "", "config": "", "says": "", "code": "0", "torch": ""}.items():
            (self.notes / name).write_text(text)
        (self.root / "requirements.txt").write_text("torch==2.13.0\ntorchvision==0.28.0\ngradio>=6\n")
        (self.root / "requirements-dev.txt").write_text("-r requirements.txt\npytest\n")
        self.environment_at(self.template)
        maker = self.script(folder / "maker", f'[ "$2" = venv ] && cp -r "{self.template}" "$3"\n')
        monkeypatch.setattr(sys, "executable", str(maker))
        monkeypatch.setenv("PATH", f"{folder / 'tools'}:/usr/bin:/bin")
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setattr(environment, "machine", lambda: machine("Linux", "x86_64", lambda *words: None))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10**12, 0, 10**12))
        self.said: list[str] = []

    def environment_at(self, folder: Path, version: str = "3 11") -> None:
        (folder / "bin").mkdir(parents=True)
        (folder / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        (folder / "pyvenv.cfg").write_text("home = somewhere\n")
        self.script(folder / "bin" / "python", PYTHON.format(home=self.notes, version=version).removeprefix("#!/bin/sh\n"))

    def script(self, path: Path, body: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n" + body)
        path.chmod(0o755)
        return path

    def prepare(self, **more) -> Path:
        return prepare(self.root, self.root / "install.log", say=self.said.append, **more)

    def installs(self) -> list[str]:
        lines = (self.notes / "calls").read_text().splitlines()
        return [line.partition("--progress-bar off ")[2] for line in lines if "pip install" in line]


@pytest.fixture
def home(tmp_path, monkeypatch):
    return Home(tmp_path, monkeypatch)


# ---- Python itself

@pytest.mark.parametrize("version", [(2, 7), (3, 8), (3, 10), (3, 15), (4, 0)])
def test_another_python_gets_one_sentence_that_names_the_ones_that_fit(version):
    sentence = launch.wrong_python((*version, 0, "final", 0))
    assert "3.11 to 3.14" in sentence and f"{version[0]}.{version[1]}" in sentence and "\n" not in sentence


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13), (3, 14)])
def test_the_pythons_that_fit_get_none(version):
    assert launch.wrong_python((*version, 2, "final", 0)) is None


def test_a_wrong_python_ends_with_a_code_that_is_not_zero(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    code = launch.main([])
    monkeypatch.undo()
    assert code != 0
    assert capsys.readouterr().err.count("\n") == 1


def test_launch_can_be_read_by_pythons_too_old_to_run_easel():
    source = (ROOT / "launch.py").read_text()
    tree = ast.parse(source, feature_version=(3, 4))
    assert source.isascii()                                 # Python 2 refuses anything else without a declaration
    newer = [node for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.AnnAssign)) or getattr(node, "annotation", None)]
    assert not newer


def test_nothing_but_the_standard_library_is_needed_before_the_environment_stands():
    code = ("import sys; before = set(sys.modules); import launch, modules.core.environment, modules.core.flags, modules.core.paths; "
            "print([m for m in sys.modules if m.split('.')[0] not in sys.stdlib_module_names "
            "and m.split('.')[0] not in ('modules', 'launch') and m not in before])")
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# ---- which torch

CARDS = {
    "a new NVIDIA card": ("cuda", {"nvidia-smi": 'echo "12.0, 580.82"'}),
    "two NVIDIA cards, one old": ("cuda", {"nvidia-smi": 'printf "6.1, 581.1\\n8.9, 581.1\\n"'}),
    "an NVIDIA card with an old driver": ("cuda-12", {"nvidia-smi": 'echo "8.6, 550.54"'}),
    "an old NVIDIA card": ("cuda-12", {"nvidia-smi": 'echo "6.1, 580.10"'}),
    "an NVIDIA driver that knows no such question": ("cuda-12", {"nvidia-smi": '[ "$1" = -L ] && echo "GPU 0: Tesla" || exit 6'}),
    "the NVIDIA tool without a card": ("cpu", {"nvidia-smi": "echo 'No devices were found'; exit 6"}),
    "an AMD card": ("rocm", {"rocminfo": 'printf "  Device Type:             CPU\\n  Device Type:             GPU\\n"'}),
    "ROCm on a machine without a card": ("cpu", {"rocminfo": 'echo "  Device Type:             CPU"'}),
    "an Intel card": ("xpu", {"sycl-ls": 'echo "[level_zero:gpu][level_zero:0] Intel(R) Arc(TM) A770"'}),
    "Intel's tool that sees the processor only": ("cpu", {"sycl-ls": 'echo "[opencl:cpu][opencl:0] Intel(R) Core"'}),
    "nothing": ("cpu", {}),
}


@pytest.mark.parametrize("case", CARDS)
def test_a_card_is_found_by_its_makers_tool(case, tmp_path, monkeypatch):
    wanted, tools = CARDS[case]
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine("Linux", "x86_64").accelerator == wanted


def test_a_tool_that_hangs_is_not_waited_for(monkeypatch):
    def hang(command, **_):
        raise subprocess.TimeoutExpired(command, 20)
    monkeypatch.setattr(subprocess, "run", hang)
    assert machine("Linux", "x86_64").accelerator == "cpu"


@pytest.mark.parametrize("system, cpu, answers, index", [
    ("Linux", "x86_64", {"nvidia-smi": "9.0, 580.1"}, None),
    ("Linux", "aarch64", {"nvidia-smi": "9.0, 580.1"}, "https://download.pytorch.org/whl/cu130"),
    ("Windows", "AMD64", {"nvidia-smi": "8.6, 581.2"}, "https://download.pytorch.org/whl/cu130"),
    ("Windows", "AMD64", {"nvidia-smi": "6.1, 581.2"}, "https://download.pytorch.org/whl/cu126"),
    ("Linux", "x86_64", {"rocminfo": "Device Type: GPU"}, "https://download.pytorch.org/whl/rocm7.2"),
    ("Windows", "AMD64", {"powershell": "Intel(R) Arc(TM) B580 Graphics"}, "https://download.pytorch.org/whl/xpu"),
    ("Windows", "AMD64", {"powershell": "Intel(R) UHD Graphics 630"}, None),
    ("Windows", "AMD64", {"rocminfo": "Device Type: GPU"}, None),
    ("Darwin", "arm64", {}, None),
    ("Linux", "x86_64", {}, "https://download.pytorch.org/whl/cpu"),
    ("Linux", "aarch64", {}, "https://download.pytorch.org/whl/cpu"),
])
def test_each_machine_gets_the_build_that_fits_it(system, cpu, answers, index):
    this = machine(system, cpu, lambda tool, *words: answers.get(Path(tool).name))
    assert build_for(this).index == index
    assert this.described


def test_every_line_of_the_table_names_a_known_kind_and_some_disk():
    for (accelerator, system, _), build in BUILDS.items():
        assert accelerator in torch_builds.WORDS and system in ("Linux", "Windows", "Darwin")
        assert isinstance(build, Build) and build.gigabytes >= 2
        assert build.index is None or build.index.startswith("https://download.pytorch.org/whl/")


def test_a_machine_that_torch_has_left_is_told_so(home, monkeypatch):
    monkeypatch.setattr(environment, "machine", lambda: machine("Darwin", "x86_64", lambda *words: None))
    with pytest.raises(StartError, match="--torch-index"):
        home.prepare()


# ---- the environment

def test_the_first_start_installs_torch_first_and_holds_it_for_the_rest(home):
    (home.notes / "says").write_text("Collecting everything\n")
    python = home.prepare()
    torch, rest = home.installs()
    assert python == home.root / ".venv" / "bin" / "python"
    assert torch == "torch==2.13.0 torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"
    assert rest.startswith("-r ") and " -c " in rest
    assert len(home.said) == 4                              # the environment, torch, the packages, done
    assert "Collecting everything" in (home.root / "install.log").read_text()


def test_torch_is_held_at_the_very_build_that_is_installed(home):
    (home.notes / "torch").write_text("2.13.0+cpu")
    home.prepare()
    assert (home.root / ".venv" / "constraints.txt").read_text() == "torch==2.13.0+cpu\n"
    assert [line for line in home.installs() if line.startswith("torch==")] == []      # it is the pinned release already


def test_with_nothing_to_install_pip_is_not_called(home):
    home.prepare()
    (home.notes / "calls").write_text("")
    home.said.clear()
    home.prepare()
    assert "pip" not in (home.notes / "calls").read_text()
    assert home.said == []


def test_a_changed_requirement_is_installed_at_the_next_start(home):
    home.prepare()
    (home.notes / "calls").write_text("")
    (home.root / "requirements.txt").write_text("torch==2.13.0\ngradio>=7\n")
    home.prepare()
    assert home.installs()


def test_the_tests_need_their_own_packages_and_ask_for_them_once(home):
    home.prepare()
    home.prepare(for_tests=True)
    assert "requirements-dev.txt" in home.installs()[-1]
    (home.notes / "calls").write_text("")
    home.prepare(for_tests=True)
    home.prepare()
    assert home.installs() == []


@pytest.mark.parametrize("where", ["environment", "configuration"])
def test_a_package_source_that_the_user_configured_is_left_to_decide(home, where, monkeypatch):
    if where == "environment":
        monkeypatch.setenv("PIP_FIND_LINKS", "/opt/wheels")
    else:
        (home.notes / "config").write_text("global.cert='/etc/ssl/ca.crt'\nglobal.extra-index-url='https://mirror.example/simple'\n")
    home.prepare()
    assert home.installs()[0] == "torch==2.13.0"


def test_a_configuration_without_a_source_does_not_count_as_one(home):
    (home.notes / "config").write_text(":env:.cert='/etc/ssl/ca.crt'\n:env:.default-timeout='180'\nglobal.index-url-note='x'\n")
    home.prepare()
    assert "--index-url https://download.pytorch.org/whl/cpu" in home.installs()[0]


def test_torch_index_overrides_the_table_and_the_configuration(home, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    home.prepare(torch_index="https://wheels.example/cu999")
    assert home.installs()[0].startswith("torch==2.13.0 torchvision==0.28.0 --index-url https://wheels.example/cu999")
    (home.notes / "calls").write_text("")
    home.prepare()                                          # remembered: the next start does not go back
    assert home.installs() == []


def test_another_torch_index_replaces_the_torch_that_is_there(home):
    (home.notes / "torch").write_text("2.13.0+cpu")
    home.prepare()
    home.prepare(torch_index="https://wheels.example/cu999")
    assert any("--force-reinstall" in line and "cu999" in line for line in home.installs())


# ---- what goes wrong

def test_a_missing_ensurepip_names_the_package_to_install(home, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ensurepip" else real(name, *more))
    with pytest.raises(StartError, match=rf"apt install python3\.{sys.version_info[1]}-venv"):
        home.prepare()


def test_an_ensurepip_that_fails_names_it_too(home, tmp_path):
    home.script(tmp_path / "maker", 'echo "Error: Command ... -m ensurepip --upgrade returned non-zero"; exit 1\n')
    with pytest.raises(StartError, match="apt install"):
        home.prepare()


BREAKS = {
    "its Python is gone": lambda venv: (venv / "bin" / "python").unlink(),
    "its Python points nowhere": lambda venv: ((venv / "bin/python").unlink(), (venv / "bin/python").symlink_to("/nowhere/python3")),
    "its Python is no program": lambda venv: (venv / "bin" / "python").write_text("garbage"),
    "its Python has become another version": lambda venv: (venv / "lib" / "python3.11").rename(venv / "lib" / "python3.9"),
    "it is half made": lambda venv: ((venv / "pyvenv.cfg").unlink(), (venv / "bin" / "python").unlink()),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_environment_is_seen_and_made_anew(home, how):
    home.prepare()
    BREAKS[how](home.root / ".venv")
    home.said.clear()
    python = home.prepare()
    assert "broken" in home.said[0]
    assert subprocess.run([str(python), "version_info"], capture_output=True).returncode == 0
    assert sorted(entry.name for entry in home.root.iterdir() if entry.name.startswith(".venv")) == [".venv"]


def test_a_broken_environment_comes_back_when_no_new_one_can_be_made(home, tmp_path):
    home.prepare()
    (home.root / ".venv" / "lib" / "python3.11" / "site-packages" / "hours_of_download").write_text("precious")
    (home.root / ".venv" / "bin" / "python").unlink()
    home.script(tmp_path / "maker", 'mkdir -p "$3/bin"; echo "OSError: [Errno 28] No space left on device"; exit 1\n')
    with pytest.raises(StartError, match="no space left"):
        home.prepare()
    assert (home.root / ".venv" / "lib" / "python3.11" / "site-packages" / "hours_of_download").read_text() == "precious"


def test_a_working_environment_is_never_touched(home):
    home.prepare()
    kept = home.root / ".venv" / "lib" / "python3.11" / "site-packages" / "mine"
    kept.write_text("x")
    (home.root / ".venv" / "easel.json").write_text("garbage")
    home.prepare()
    assert kept.read_text() == "x"


def test_this_very_environment_counts_as_working():
    """The probe on a real environment: a wrong answer here would have it made anew."""
    assert environment._works(Path(sys.prefix)) is (sys.prefix != sys.base_prefix)


def test_a_folder_that_is_no_environment_is_left_alone(home):
    (home.root / ".venv").mkdir()
    (home.root / ".venv" / "thesis.tex").write_text("years")
    with pytest.raises(StartError, match=r"thesis\.tex"):
        home.prepare()
    assert (home.root / ".venv" / "thesis.tex").read_text() == "years"


def test_a_file_in_the_place_of_the_environment_gets_a_sentence(home):
    (home.root / ".venv").write_text("")
    with pytest.raises(StartError, match="not a folder"):
        home.prepare()


def test_too_little_disk_is_said_before_anything_is_loaded(home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10**12, 10**12, 4 * 10**8))
    with pytest.raises(StartError, match=r"0\.4 GB free"):
        home.prepare()
    assert home.installs() == []


@pytest.mark.parametrize("says, part", [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
    ("WARNING: Retrying ... NewConnectionError ...\nERROR: No matching distribution found for torch==2.13.0", "could not be reached"),
    ("ERROR: No matching distribution found for torch==2.13.0", "--torch-index"),
    ("ERROR: No matching distribution found for gradio<7,>=6", "gradio<7,>=6 is not offered"),
    ("SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]')", "certificate"),
    ("error: [Errno 13] Permission denied: '/x'", "could not be written"),
    ("ERROR: something new", "something new"),
    ("", "nothing"),
])
def test_why_pip_failed_is_one_sentence_with_what_to_do(home, says, part):
    (home.notes / "says").write_text(says + "\n")
    (home.notes / "code").write_text("1")
    with pytest.raises(InstallError) as caught:
        home.prepare()
    assert part in str(caught.value) and "start again" in str(caught.value) and "\n" not in str(caught.value)
    assert "install.log" in str(caught.value)
    assert says in (home.root / "install.log").read_text()
    assert not (home.root / ".venv" / "easel.json").exists()      # the next start tries again


def test_the_real_pip_without_a_source_fails_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    pip = Pip(Path(sys.executable), tmp_path / "install.log", lambda text: None)
    assert pip.works() and pip.has_own_source()
    with pytest.raises(InstallError, match=r"easel-has-no-such-package is not offered"):
        pip.install(["--no-index", "easel-has-no-such-package"], "requirements.txt")
    assert "easel-has-no-such-package" in (tmp_path / "install.log").read_text()


def test_pip_is_asked_for_the_version_of_what_is_installed(tmp_path):
    pip = Pip(Path(sys.executable), tmp_path / "log")
    assert pip.version_of("pytest") == pytest.__version__
    assert pip.version_of("no_such_package") == ""


def test_reason_never_raises_on_what_pip_may_say():
    for lines in ([], [""], ["ERROR:"], ["x" * 10_000]):
        assert reason(lines, "torch").count("\n") == 0


def test_ctrl_c_while_installing_is_one_line_and_no_success(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(environment, "inside", lambda root: False)
    monkeypatch.setattr(environment, "prepare", interrupted)
    assert launch.main(["--data-dir", "/nonexistent"]) == 130
    assert "Start again" in capsys.readouterr().err


# ---- entering it

def test_windows_keeps_its_python_under_scripts():
    assert python_of(Path("env"), windows=True) == Path("env/Scripts/python.exe")
    assert python_of(Path("env"), windows=False) == Path("env/bin/python")


def test_windows_runs_the_environments_python_as_a_child_and_gives_back_its_code(monkeypatch):
    kept = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    try:
        assert environment.enter(Path(sys.executable), ["-c", "raise SystemExit(7)"], windows=True) == 7
    finally:
        signal.signal(signal.SIGINT, kept)


def test_elsewhere_the_process_becomes_the_environments_python():
    code = ("from pathlib import Path; import os, sys; from modules.core import environment; print(os.getpid(), flush=True); "
            "environment.enter(Path(sys.executable), ['-c', 'import os; print(os.getpid(), os.environ[\"HF_HUB_OFFLINE\"])'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    before, after = done.stdout.splitlines()
    assert after.split() == [before, "1"]


def test_what_the_user_has_set_in_the_process_environment_stays(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert environment.surroundings()["HF_HUB_OFFLINE"] == "0"
    assert environment.surroundings()["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_what_libraries_write_goes_into_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    environment.settle(tmp_path / "data")
    for name in ("GRADIO_TEMP_DIR", "HF_HOME", "XDG_CACHE_HOME", "TMPDIR", "TORCH_HOME"):
        assert Path(os.environ[name]).is_relative_to(tmp_path / "data")


def test_a_data_folder_that_cannot_be_made_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="--data-dir"):
        environment.settle(tmp_path / "file" / "data")


# ---- the command line

def test_help_lists_every_flag_and_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        flags.read(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for word in ("--port", "--listen", "--api-auth", "--cors-allow-origins", "--subpath", "--data-dir", "--torch-index", "--deterministic"):
        assert word in shown
    for name, _ in flags.COMMANDS:
        assert name in shown


def test_flags_stand_before_a_command_and_its_own_arguments_behind():
    order = flags.read(["--log-level", "info", "txt2img", "a boat", "--steps", "20", "--data-dir", "/d", "--lora-dir=/l", "-o", "out.png"])
    assert order.command == "txt2img"
    assert order.rest == ("a boat", "--steps", "20", "-o", "out.png")
    assert (order.flags.data_dir, order.flags.lora_dir, order.flags.log_level) == ("/d", "/l", "info")


def test_everything_behind_test_belongs_to_pytest():
    assert flags.read(["test", "--nightly", "-k", "x", "--data-dir"]).rest == ("--nightly", "-k", "x", "--data-dir")


def test_nowebui_means_the_api():
    assert flags.read(["--nowebui"]).flags.api


@pytest.mark.parametrize("argv", [["--port", "99999"], ["--port", "x"], ["--api-auth", "nocolon"], ["--api-auth", "a:b:c"], ["--nonsense"],
                                  ["--tls-keyfile", "x"], ["--api-auth-file", "/no/such/file"], ["txt2img", "--data-dir"]])
def test_a_bad_flag_ends_with_code_2_and_repeats_no_secret(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        flags.read(argv)
    assert ended.value.code == 2
    assert "a:b:c" not in capsys.readouterr().err


def test_users_come_from_flags_and_files_and_stay_out_of_the_repr(tmp_path):
    (tmp_path / "users").write_text("carol:three\ndave:four\n")
    read = flags.read(["--api-auth", "anna:one,bob:two", "--gradio-auth-path", str(tmp_path / "users")]).flags
    assert dict(read.users) == {"anna": "one", "bob": "two", "carol": "three", "dave": "four"}
    assert "three" not in repr(read)


# ---- ports, names, browser

def test_a_port_that_was_asked_for_and_is_taken_ends_with_code_2():
    with listen_on("127.0.0.1", 0, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"Port {port}") as caught:
            listen_on("127.0.0.1", port, 7860)
    assert caught.value.exit_code == 2


def test_without_asking_the_next_free_port_is_taken():
    with listen_on("127.0.0.1", None, 20_000) as first, listen_on("127.0.0.1", None, first.getsockname()[1]) as second:
        assert second.getsockname()[1] > first.getsockname()[1]


def test_an_unknown_address_gets_a_sentence(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(StartError, match="--server-name"):
        listen_on("no.such.host", 7860, 7860)


@pytest.mark.parametrize("wanted, options, environ, terminal, platform", [
    (True, {}, {"DISPLAY": ":0"}, True, "linux"),
    (True, {}, {}, True, "darwin"),
    (True, {"autolaunch": True}, {}, False, "linux"),
    (False, {}, {}, True, "linux"),
    (False, {}, {"DISPLAY": ":0"}, False, "linux"),
    (False, {}, {"DISPLAY": ":0", "CI": "1"}, True, "linux"),
    (False, {}, {"SSH_CONNECTION": "x"}, True, "darwin"),
    (False, {"no_browser": True, "autolaunch": True}, {"DISPLAY": ":0"}, True, "linux"),
    (False, {"nowebui": True}, {"DISPLAY": ":0"}, True, "linux"),
])
def test_the_browser_opens_where_somebody_sits_at_a_screen(wanted, options, environ, terminal, platform):
    assert wants_browser(flags.Flags(**options), environ, terminal, platform) is wanted


def test_the_whole_network_is_never_served_without_credentials():
    guard = guard_for(flags.Flags(listen=True), 7860, True, "a-token")
    assert guard.token and guard.any_address
    assert json.dumps(repr(guard)).count("a-token") == 0
