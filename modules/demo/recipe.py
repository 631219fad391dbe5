"""How the embedded model is made: which scenes it sees, and the three runs, VAE first, that train it.

    python -m modules.demo.recipe vae WHERE [--minutes 60] [--size 128]
    python -m modules.demo.recipe text WHERE                # the text tower learns to read: minutes (reading.py)
    python -m modules.demo.recipe model WHERE [--minutes 60] [--size 128]

VAE and model go on from the state in WHERE; without one, from the weights that an earlier sitting stored here, and without these from
nothing. The CPU's sizes are for 128 px on two cores, the accelerator's for 256 px.
"""
from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from modules.core import hardware
from modules.core.progress import Progress
from modules.demo import captions, reading, scenes
from modules.imaging.convert import to_pixels
from modules.prompts.tokens import Tokenizer
from modules.training import checkpoint
from modules.training.diffusion import networks_for, schedule_of
from modules.training.objectives import scale_by_std
from modules.training.recipe import Data, Ema, Model, Objective, Recipe, Samples, TextSizes, Training, UNetSizes, VaeObjective, VaeSizes
from modules.training.train import train

STORED = tuple(Path(__file__).with_name(name) for name in ("storybook.safetensors", "storybook-begun.safetensors"))     # of 128 px
VERSION = 1                                                 # of what a picture's number means; latents of another are made anew
SPOILED, STRANGE = 0.04, 0.12                               # part of the pictures with a fault; of captions with words that mean nothing
STRANGERS = ("quantum", "sandwich", "velvet", "committee", "trending", "4k", "nostalgia", "engine", "philosophy", "marble", "dragon",
             "octane render", "highly detailed", "algorithm", "banana", "galaxy", "award winning", "robot", "cinematic", "teapot")
LOOKS = ("a big red house on the left in a meadow at sunset", "a small blue boat in the middle on the sea, day, clouds",
         "a yellow car on the right on a road at night", "a green cat in the middle on snow at dawn",
         "a purple flower on the left and a white dog on the right in a meadow, day", "an orange balloon, desert, sunset",
         "a pink castle on hills, rainbow", "")


@dataclass(frozen=True)
class Storybook:
    """`count` scenes of `size` pixels by number, of combinations that may be trained on. The words of a picture change each time around."""

    count: int
    size: int
    seed: int = 0
    round: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> tuple[Tensor, str]:
        """pixels (3, size, size) float32 in -1..1, caption."""
        rng = self._rng(index, "picture")
        image = scenes.draw(scenes.training_layout(rng), self.size).image
        if rng.random() < SPOILED:
            image, _ = captions.spoiled(image, rng)
        return to_pixels(image)[0], self.caption(index)

    def caption(self, index: int) -> str:
        """The words of this time around. A fault of the picture is always named."""
        rng = self._rng(index, "picture")
        layout = scenes.training_layout(rng)
        spoiled = rng.random() < SPOILED
        fault = captions.fault(rng) if spoiled else ""
        words = self._rng(index, f"words {self.round}")
        parts = [captions.caption(layout, words), *([fault] if fault else [])]
        if words.random() < STRANGE:
            parts += words.sample(STRANGERS, words.choice((1, 1, 2, 3)))
            words.shuffle(parts)
        return ", ".join(parts)

    def identity(self, index: int) -> str:
        return f"storybook {VERSION} {self.seed} {self.size} {index}"

    def epoch(self, number: int) -> Storybook:
        return replace(self, round=number)

    def _rng(self, index: int, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {index} {purpose}")


def vae_recipe(size: int, minutes: float = 0.0) -> Recipe:
    """The VAE, f8 with 4 latent channels. Groups of four channels: with groups of one or two colours are normalised away."""
    large = size > 128
    stored = str(_stored() or "") if not large else ""
    return Recipe(
        kind="vae", seed=1, data=Data(size=size, crop=128 if large else 64),
        vae=VaeSizes(channels=64, multiply=(1, 1, 2, 2), res_blocks=1) if large
        else VaeSizes(channels=32, multiply=(1, 2, 4, 4), res_blocks=1),
        model=Model(vae=stored, norm_groups=_groups(size), title="storybook-vae", dtype="float32"),
        vae_objective=VaeObjective(kl=1e-5, adversarial=0.1 if large else 0.0, adversarial_start=8000),
        training=Training(steps=24_000, batch=32 if large else 16, lr=5e-4 if large else 8e-4, warmup=200, betas=(0.9, 0.99),
                          weight_decay=0.0, precision=_precision(), save_every=500, sample_every=500, minutes=minutes),
        ema=Ema(decay=0.999))


def model_recipe(size: int, vae: Path, minutes: float = 0.0, begun: Path | None = None) -> Recipe:
    """The U-Net with its text tower, on the latents of that VAE. begun: the file whose U-Net and text tower it begins with.

    On the CPU there is no attention at the finest level, where it would take half of the time: words reach the picture in cells of 16
    pixels.
    """
    large = size > 128
    return Recipe(
        kind="diffusion", seed=2, data=Data(size=size),
        model=Model(checkpoint=str(begun) if begun else "", vae=str(vae), norm_groups=_groups(size), title="storybook"),
        unet=UNetSizes(channels=80, multiply=(1, 2, 2, 3), depths=(1, 1, 1, 0), res_blocks=1) if large
        else UNetSizes(channels=64, multiply=(1, 2, 3), depths=(0, 1, 1), res_blocks=1),
        text=TextSizes(width=128, layers=4, train="yes"), objective=Objective(weight="min_snr", caption_dropout=0.1),
        training=Training(steps=200_000, batch=256 if large else 64, lr=1e-3 if large else 6e-4, warmup=500, betas=(0.9, 0.99),
                          precision=_precision(), save_every=500, sample_every=1000, minutes=minutes),
        ema=Ema(decay=0.9995), samples=Samples(prompts=LOOKS, cfg_scale=5.0))


def read_first(recipe: Recipe, file: Path, steps: int = 1000) -> Path:
    """A checkpoint whose text tower has learnt to read, whose U-Net has learnt nothing, and whose scale is measured on 64 scenes."""
    networks = networks_for(recipe)
    reading.teach(networks.text, Tokenizer(), steps=steps, strangers=STRANGERS, strange=STRANGE, spoiled=SPOILED,
                  half=recipe.training.precision == "bfloat16")
    if networks.scale_factor is None:
        book = Storybook(64, recipe.data.size)
        with torch.no_grad():
            mean, _ = networks.vae.encode(torch.stack([book[number][0] for number in range(len(book))]))
        networks.scale_factor = float(scale_by_std(mean))
    return checkpoint.write(file, networks, schedule_of(recipe), kind="eps", title="storybook, before its first picture",
                            size=recipe.data.size, dtype=torch.float32)


def _stored() -> Path | None:
    """The weights that an earlier sitting stored: the finished model, or one that is on its way."""
    return next((file for file in STORED if file.is_file()), None)


def _groups(size: int) -> int:
    """Of the norms of both networks: a checkpoint states one count for all of them."""
    return 16 if size > 128 else 8


def _precision() -> str:
    """bfloat16 on a CPU that multiplies it, where a step takes two thirds of the time."""
    return "bfloat16" if hardware.device().type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "auto"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("vae", "text", "model"))
    parser.add_argument("where", type=Path)
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long, to go on later; 0 = to the end")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--scenes", type=int, default=0, help="how many; 0 = 6000 for the VAE, 12000 for the model")
    parser.add_argument("--vae", type=Path, help="the VAE's file; WHERE/vae/storybook-vae.safetensors if left out, or the stored one")
    told = parser.parse_args()
    made = told.where / "vae" / "storybook-vae.safetensors"
    vae = (told.vae or (made if made.is_file() else _stored()) or made).resolve()
    read = (told.where / "text" / "storybook-text.safetensors").resolve()
    if told.part == "text":
        read.parent.mkdir(parents=True, exist_ok=True)
        print(read_first(model_recipe(told.size, vae), read))
        return
    if told.part == "vae":
        recipe = vae_recipe(told.size, told.minutes)
    else:
        begun = _stored() if told.size <= 128 else None
        recipe = model_recipe(told.size, vae, told.minutes, begun or (read if read.is_file() else None))
    data = Storybook(told.scenes or (6000 if told.part == "vae" else 12_000), told.size)
    print(train(recipe, folder=told.where / told.part, progress=Progress(), data=data))


if __name__ == "__main__":
    main()
