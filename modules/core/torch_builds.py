"""Which build of torch fits this machine, and where it is found. Data and questions; standard library only.

For torch 2.13 the vendor builds CUDA 12.6 and 13.0, ROCm 7.2, Intel XPU and CPU; the package index that pip asks by default has
CUDA 13.0 for Linux on x86-64, the CPU build for Windows, and the build with Metal for Apple's own processors.
"""
from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

VENDOR = "https://download.pytorch.org/whl/"
CUDA_13_DRIVER = 580                                        # the oldest driver that runs CUDA 13 programs
CUDA_13_CARD = 7.5                                          # Turing; older cards are only in the CUDA 12.6 build
CUDA_12_LAST_CARD = 9.0                                     # Hopper; newer cards are only in the CUDA 13 build
WSL_TOOLS = Path("/usr/lib/wsl/lib")                        # where Windows shows its driver's tools to a Linux inside it
ROCM_TOOLS = Path("/opt/rocm/bin")


@dataclass(frozen=True)
class Build:
    """index: what pip is told as --index-url, None = its default. gigabytes: disk that the whole environment then takes."""

    index: str | None
    gigabytes: int


@dataclass(frozen=True)
class Machine:
    """system: Linux, Windows, Darwin. cpu: x86_64 or arm64. accelerator: cuda, cuda-12, rocm, xpu, mps or cpu."""

    system: str
    cpu: str
    accelerator: str

    @property
    def described(self) -> str:
        """What was found, in words."""
        return WORDS[self.accelerator]


WORDS = MappingProxyType({
    "cuda": "an NVIDIA card (CUDA 13)", "cuda-12": "an NVIDIA card of an older kind or with an older driver (CUDA 12)",
    "rocm": "an AMD card (ROCm)", "xpu": "an Intel card (XPU)", "mps": "an Apple processor (Metal)",
    "cpu": "no graphics card that torch can use",
})
BUILDS = MappingProxyType({
    ("cuda", "Linux", "x86_64"): Build(None, 9),
    ("cuda", "Linux", "arm64"): Build(VENDOR + "cu130", 9),
    ("cuda", "Windows", "x86_64"): Build(VENDOR + "cu130", 8),
    ("cuda-12", "Linux", "x86_64"): Build(VENDOR + "cu126", 9),
    ("cuda-12", "Linux", "arm64"): Build(VENDOR + "cu126", 9),
    ("cuda-12", "Windows", "x86_64"): Build(VENDOR + "cu126", 8),
    ("rocm", "Linux", "x86_64"): Build(VENDOR + "rocm7.2", 20),
    ("xpu", "Linux", "x86_64"): Build(VENDOR + "xpu", 10),
    ("xpu", "Windows", "x86_64"): Build(VENDOR + "xpu", 8),
    ("mps", "Darwin", "arm64"): Build(None, 3),
    ("cpu", "Linux", "x86_64"): Build(VENDOR + "cpu", 3),
    ("cpu", "Linux", "arm64"): Build(VENDOR + "cpu", 3),
    ("cpu", "Windows", "x86_64"): Build(None, 3),
    ("cpu", "Windows", "arm64"): Build(VENDOR + "cpu", 3),
    ("cpu", "Darwin", "arm64"): Build(None, 3),
})
CPUS = MappingProxyType({"amd64": "x86_64", "x64": "x86_64", "x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"})

Run = Callable[..., "str | None"]


def output_of(*command: str) -> str | None:
    """What a tool prints, or None when it is missing, fails, or does not answer within 20 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, errors="replace", stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def machine(system: str = "", cpu: str = "", run: Run = output_of) -> Machine:
    """This machine, or another for which `run` answers in place of its tools."""
    system = system or platform.system()
    cpu = cpu or platform.machine()
    cpu = CPUS.get(cpu.lower(), cpu)
    found = _accelerator(system, cpu, run)
    return Machine(system, cpu, found if (found, system, cpu) in BUILDS else "cpu")


def build_for(this: Machine) -> Build | None:
    """The line of the table for this machine; None when the pinned torch is not built for it at all."""
    return BUILDS.get((this.accelerator, this.system, this.cpu))


def _accelerator(system: str, cpu: str, run: Run) -> str:
    if system == "Darwin":
        return "mps" if cpu == "arm64" else "cpu"
    return _nvidia(run) or _amd(run) or _intel(system, run) or "cpu"


def _tool(name: str, *folders: Path) -> str:
    return shutil.which(name) or next((str(folder / name) for folder in folders if (folder / name).is_file()), name)


def _nvidia(run: Run) -> str:
    """cuda or cuda-12 by the driver's version and the newest card's compute capability; "" without a card."""
    tool = _tool("nvidia-smi", WSL_TOOLS)
    lines = (run(tool, "--query-gpu=compute_cap,driver_version", "--format=csv,noheader") or "").splitlines()
    cards = [tuple(part.strip() for part in line.split(",")) for line in lines if line.count(",") == 1]
    try:
        newest = max(float(capability) for capability, _ in cards)
        driver = int(cards[0][1].split(".")[0])
    except ValueError:                                      # a driver too old to be asked this, or no card at all
        return "cuda-12" if "GPU 0" in (run(tool, "-L") or "") else ""
    old_driver = driver < CUDA_13_DRIVER and newest <= CUDA_12_LAST_CARD
    return "cuda-12" if newest < CUDA_13_CARD or old_driver else "cuda"


def _amd(run: Run) -> str:
    agents = run(_tool("rocminfo", ROCM_TOOLS)) or ""
    kinds = [line.split(":", 1)[1].strip() for line in agents.splitlines() if line.strip().startswith("Device Type:")]
    return "rocm" if "GPU" in kinds else ""


def _intel(system: str, run: Run) -> str:
    """xpu for cards that torch's XPU build serves: by Intel's own tools on Linux, by the card's name on Windows."""
    if system == "Windows":
        names = run("powershell", "-NoProfile", "-Command", "(Get-CimInstance Win32_VideoController).Name") or ""
        return "xpu" if "Intel" in names and "Arc" in names else ""
    devices = (run("sycl-ls") or "") + (run("xpu-smi", "discovery") or "")
    return "xpu" if "level_zero:gpu" in devices or ("Device Name" in devices and "Intel" in devices) else ""
