"""Which device, which number format, how much memory: pure questions. torch is imported inside, so that the page can come first."""
from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MOST_SIDE_BY_SIDE = 4                                       # threads; more wait for the memory

CAPABLE = (7, 0)                                            # NVIDIA: from here on float16 is computed at full speed
NAN_CARDS = ("GTX 16", "T500", "T550", "T600", "MX550", "MX450", "CMP 30HX")    # Turing without tensor cores: float16 convolutions give NaN


def device() -> torch.device:
    """The accelerator that torch was built for and that answers (CUDA or ROCm, XPU, MPS ...), else the CPU."""
    import torch  # heavy

    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        if found is not None and found.type in ("cuda", "xpu", "mps"):
            return found
    return torch.device("cpu")


def dtype(where: torch.device) -> torch.dtype:
    """The format of the networks there: float32 on every CPU, float16 on accelerators, another where float16 is known to fail."""
    import torch  # heavy

    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[_choice(where)[0]]


@contextmanager
def side_by_side() -> Iterator[ThreadPoolExecutor]:
    """A pool whose few threads each compute alone, for work in many pieces. Threads that share every piece wait for each other after each
    one, and for long when anything else runs: with a file being hashed beside it, loading a model took three times as long.
    """
    import torch  # heavy

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(before, MOST_SIDE_BY_SIDE), thread_name_prefix="side") as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def describe() -> str:
    """Device, format and reason in one sentence."""
    where = device()
    kind, reason = _choice(where)
    return f"Pictures are made on {name(where)} in {kind}, {reason}."


def name(where: torch.device) -> str:
    """The device's name as its maker writes it; "the CPU (8 threads)" for a CPU."""
    import torch  # heavy

    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    if where.type == "xpu":
        return torch.xpu.get_device_name(where)
    if where.type == "mps":
        return "the Apple GPU"
    return f"the CPU ({torch.get_num_threads()} threads)"


def memory_free(where: torch.device) -> int | None:
    """Bytes that can still be taken there; None where the system does not say."""
    import torch  # heavy

    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    if where.type == "xpu":
        return torch.xpu.mem_get_info(where)[0]
    if where.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return ram_free()


def _choice(where: torch.device) -> tuple[str, str]:
    """The format, and why, to follow a comma."""
    import torch  # heavy

    if where.type == "cpu":
        return "float32", "since a CPU gains nothing from less"
    if where.type == "cuda" and torch.version.hip is None:
        card = name(where)
        if any(word in card for word in NAN_CARDS):
            return "float32", "since this card gives no numbers in float16"
        if torch.cuda.get_device_capability(where) < CAPABLE:
            return "float32", "since this card is slower in float16"
    if where.type == "xpu" and torch.xpu.is_bf16_supported():
        return "bfloat16", "which this device computes fastest"
    return "float16", "which halves the memory and keeps more digits than bfloat16"


def ram_free() -> int | None:
    """Bytes of main memory that can still be taken, as Linux says in /proc/meminfo; None elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except (OSError, ValueError):
        return None
    available = lines.get("MemAvailable")
    return int(available.split()[0]) * 1024 if available else None
