"""Full-size Stable Diffusion 1.5 with random weights, Easel beside diffusers, alternating in one run.

    python -m tests.benchmarks.against_diffusers [--size 256] [--steps 8] [--rounds 2]

Each measurement is a process of its own. Printed: seconds and GiB of both, and the ratio Easel / diffusers beside its gate.
Seconds say nothing across machines; only the ratios of one run do.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from modules.core.environment import surroundings

SIZES = {"width": 320, "vae_width": 128, "text_width": 768, "text_layers": 12, "mult": (1, 2, 4, 4)}
PROMPT, NEGATIVE = "a red boat on a lake, at night", "blurry"
ROWS = (                                                    # figure, unit, gate on Easel / diffusers
    ("U-Net step", "s", 1.0), ("VAE decode", "s", 1.0), ("load to ready", "s", 1.0), ("start to ready", "s", 1.0),
    ("prompt to PNG", "s", 1.0), ("peak RSS", "GiB", 1.0),
)


def measure_easel(folder: Path, size: int, steps: int) -> dict[str, float]:
    """One process of ours: a job through the engine, then the networks alone."""
    born = time.perf_counter()
    import torch

    from modules.core.paths import Paths
    from modules.engine import Engine
    from modules.pipeline.request import Request

    with tempfile.TemporaryDirectory() as data:
        engine = Engine(Paths.of(folder, data_dir=Path(data), models_dir=folder / "models"))
        asked = time.perf_counter()
        models = engine._models()
        with models.borrow("full.safetensors") as model:
            ready = time.perf_counter()
            unet, vae = model.unet, model.vae
        request = Request(prompt=PROMPT, negative_prompt=NEGATIVE, width=size, height=size, steps=steps, seed=1, sampler="Euler",
                          checkpoint="full.safetensors")
        begun = time.perf_counter()
        engine.submit(request).result(timeout=3600)
        done = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        latent = torch.randn(2, 4, size // 8, size // 8)
        with torch.inference_mode():
            step = timed(lambda: unet(latent, torch.tensor([500.0, 500.0]), torch.randn(2, 77, 768)), 5)
            decode = timed(lambda: vae.decode(latent[:1]), 3)
        engine.close()
    return {"U-Net step": step, "VAE decode": decode, "load to ready": ready - asked, "start to ready": ready - born,
            "prompt to PNG": done - begun, "peak RSS": peak, "overhead": max(0.0, (done - begun - steps * step - decode) / (done - begun))}


def measure_diffusers(folder: Path, size: int, steps: int) -> dict[str, float]:
    """One process of theirs: the same file, the same request, the same networks alone."""
    born = time.perf_counter()
    import torch

    from tests.oracles.pipelines import pipeline

    asked = time.perf_counter()
    pipe = pipeline(folder / "models" / "Stable-diffusion" / "full.safetensors", folder / "config")
    ready = time.perf_counter()
    begun = time.perf_counter()
    image = pipe(PROMPT, negative_prompt=NEGATIVE, width=size, height=size, num_inference_steps=steps, guidance_scale=7.0,
                 generator=torch.Generator().manual_seed(1)).images[0]
    image.save(folder / "theirs.png")
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    latent = torch.randn(2, 4, size // 8, size // 8)
    with torch.inference_mode():
        step = timed(lambda: pipe.unet(latent, torch.tensor([500.0, 500.0]), torch.randn(2, 77, 768)).sample, 5)
        decode = timed(lambda: pipe.vae.decode(latent[:1]).sample, 3)
    return {"U-Net step": step, "VAE decode": decode, "load to ready": ready - asked, "start to ready": ready - born,
            "prompt to PNG": done - begun, "peak RSS": peak}


def timed(call, times: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    call()
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def overhead(size: int = 64, steps: int = 50) -> float:
    """Seconds of one step outside the network: sampler, guidance, progress, preview offers. Measured on a network that takes no time."""
    import torch

    from modules.sampling import catalogue, schedule
    from modules.sampling.conditioning import Conditioning
    from modules.sampling.denoise import denoise
    from modules.sampling.prediction import Prediction, scaled_linear_alphas

    class Nothing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, timesteps, context):
            return x

    prediction = Prediction("eps", scaled_linear_alphas())
    sigmas = schedule.ladder("Automatic", "Euler", steps, prediction)
    text = Conditioning(cross=torch.zeros(1, 77, 768))
    begun = time.perf_counter()
    denoise(Nothing(), prediction, torch.randn(1, 4, size // 8, size // 8), sigmas, catalogue.sampler("Euler"),
            conditioning_at=lambda call: [(((1.0, text),), text)], cfg_scale=7.0, noise=lambda a, b: torch.zeros(1, 4, size // 8, size // 8))
    return (time.perf_counter() - begun) / steps


def write_file(folder: Path) -> None:
    """The checkpoint (2 GiB, float16, random) and diffusers' configuration of it, once."""
    import torch

    from tests import tiny
    from tests.oracles.pipelines import write_config

    target = folder / "models" / "Stable-diffusion" / "full.safetensors"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        tiny.save_sd1(target, dtype=torch.float16, **SIZES)
    write_config(folder / "config")


def child(which: str, folder: Path, size: int, steps: int) -> dict[str, float]:
    env = os.environ | (surroundings() if which == "easel" else {})         # as launch.py starts it
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.against_diffusers", "--child", which, "--folder", str(folder),
                           "--size", str(size), "--steps", str(steps)], capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        sys.exit(f"The measurement of {which} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "easel-benchmark")
    parser.add_argument("--child", choices=("easel", "diffusers"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        measure = measure_easel if told.child == "easel" else measure_diffusers
        print(json.dumps(measure(told.folder, told.size, told.steps)))
        return
    write_file(told.folder)
    found: dict[str, list[dict[str, float]]] = {"easel": [], "diffusers": []}
    for _ in range(told.rounds):
        for which in found:
            found[which].append(child(which, told.folder, told.size, told.steps))
    print(f"SD1.5, full size, random weights, float32, {told.size} px, {told.steps} steps Euler, CFG 7, {os.cpu_count()} cores, "
          f"median of {told.rounds} alternating rounds")
    print(f"{'':16}{'Easel':>10}{'diffusers':>11}{'ratio':>8}{'gate':>8}")
    for name, unit, gate in ROWS:
        ours, theirs = (statistics.median(one[name] for one in found[which]) for which in ("easel", "diffusers"))
        print(f"{name:16}{ours:8.2f} {unit:3}{theirs:8.2f} {unit:3}{ours / theirs:7.2f}  <= {gate:.2f}{'' if ours / theirs <= gate else '  missed'}")
    step = statistics.median(one["U-Net step"] for one in found["easel"])
    lost = overhead()
    print(f"Python around the network: {lost * 1000:.2f} ms a step, {lost / step:.2%} of one  <= 2 %")


if __name__ == "__main__":
    main()
