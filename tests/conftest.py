"""What every test stands on: one torch thread (the machines are small, and sums keep their order) and no network."""
import os
import socket
import subprocess

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")              # before torch; processes that tests start have it too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="also run what is too long for every run")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--nightly"):
        for item in items:
            if "nightly" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="nightly only"))


@pytest.fixture
def figure(request):
    """figure(name, value, gate): what was measured, printed below the tests; of several values of a name the largest."""
    def tell(name, value, gate):
        request.node.user_properties.append(("figure", (name, value, gate)))     # this much of a test reaches the process that prints
    return tell


def pytest_terminal_summary(terminalreporter):
    found = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for kind, said in getattr(report, "user_properties", ()):
            if kind == "figure" and report.when == "call":
                name, value, gate = said
                found[name] = max(found.get(name, (value, gate)), (value, gate))
    if found:
        terminalreporter.section("measured")
        for name, (value, gate) in sorted(found.items()):
            terminalreporter.line(f"{name:70} {value:10.3g}   {gate}")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A test that reaches beyond this machine fails."""
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
            raise OSError(f"A test tried to reach {address}; tests stay on this machine.")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture
def small_disk(tmp_path, request):
    """A folder on a disk of its own, of 2 MiB or as many as the test's parameter says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    size = f"size={getattr(request, 'param', 2)}m"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
