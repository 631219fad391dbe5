"""Full-size Stable Diffusion 1.5 and SDXL with random weights: how long loading takes, and what stays in memory over six switches.

    python -m tests.benchmarks.switching [--folder WHERE]

Printed: seconds of a load beside those of reading the file and converting it to float32 with safetensors in the same run; resident memory
after each switch beside that of the switch before to the same model; and that SDXL takes a step. Needs 24 GiB of memory, 9 GiB of disk.
"""
from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modules.checkpoints.residency import Residency
from modules.checkpoints.shelf import Shelf
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from tests import tiny, tiny_families

SD15 = {"width": 320, "vae_width": 128, "text_width": 768, "text_layers": 12, "mult": (1, 2, 4, 4)}
GIB = 2 ** 30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files are made and found again; a folder of its own if left out")
    told = parser.parse_args()
    if told.folder:
        measure(told.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    paths = Paths.of(folder)
    paths.make()
    files = {name: paths.checkpoints[0] / f"{name}.safetensors" for name in ("sd15", "sdxl")}
    for name, file in files.items():
        if not file.exists():                               # in a process of its own, whose memory goes with it
            context = multiprocessing.get_context("spawn")
            maker = context.Process(target=make, args=(name, file))
            maker.start()
            maker.join()
    residency = Residency(Shelf(paths, Hashes(paths.hashes_file)), "cpu", torch.float32)
    for name, file in files.items():
        residency.preload(name, "None")                     # its hash is known from here on
        residency.release()
        plain = min(reading(file) for _ in range(2))
        loads = [timed(residency, name) for _ in range(2)]
        print(f"{name}: loaded in {min(loads):.1f} s, read and converted alone in {plain:.1f} s, ratio {min(loads) / plain:.2f} (gate 1.3)",
              flush=True)
    process, seen = psutil.Process(), []
    for turn, name in enumerate(("sd15", "sdxl") * 3, 1):
        residency.preload(name, "None")
        seen.append(process.memory_info().rss)
        print(f"switch {turn} to {name}: resident {seen[-1] / GIB:.2f} GiB", flush=True)
    for last, before in ((5, 3), (4, 2)):
        print(f"resident after switch {last + 1} against switch {before + 1}: {seen[last] / seen[before]:.3f} (gate 1.05)")
    step(residency)


def make(name: str, file: Path) -> None:
    save_file(tiny.sd1(dtype=torch.float16, **SD15) if name == "sd15"
              else tiny_families.sdxl(dtype=torch.float16, **tiny_families.FULL_SDXL), file)


def timed(residency: Residency, name: str) -> float:
    """Seconds of a load into empty memory."""
    residency.release()
    begun = time.perf_counter()
    residency.preload(name, "None")
    seconds = time.perf_counter() - begun
    residency.release()
    return seconds


def reading(path: Path) -> float:
    """Seconds to read every tensor of a file and convert it to float32, nothing else; nothing of it is kept."""
    begun = time.perf_counter()
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            file.get_tensor(name).float()
    return time.perf_counter() - begun


@torch.inference_mode()
def step(residency: Residency) -> None:
    """One step of the full-size SDXL at 256 px, cond and uncond together."""
    with residency.borrow("sdxl", "None") as model:
        begun = time.perf_counter()
        out = model.unet(torch.randn(2, 4, 32, 32), torch.tensor([500.0, 500.0]), torch.randn(2, 77, 2048), torch.randn(2, 2816))
        print(f"a step of SDXL at 256 px: {time.perf_counter() - begun:.1f} s, values finite: {bool(out.isfinite().all())}")


if __name__ == "__main__":
    main()
