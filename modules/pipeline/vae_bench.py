"""VAEs side by side: the same latent decoded by each, and a picture there and back, in figures and as pictures."""
from __future__ import annotations

import csv
import ctypes
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from modules.checkpoints import load, read
from modules.core.errors import CheckpointError, RequestError
from modules.families.autoencoders import PREFIXES, SD1_SCALE, autoencoder_from
from modules.families.base import LatentFormat
from modules.families.keys import plain_names
from modules.imaging import convert
from modules.imaging.grid import grid
from modules.networks import layers
from modules.pipeline import latents

WINDOW, SPREAD = 11, 1.5                                    # of SSIM's Gaussian, in pixels
STABILITY = (0.01, 0.03)                                    # K1 and K2 of SSIM
EVEN = 64                                                   # pixels: sizes are made multiples of this, which suits every VAE
WARM = 64                                                   # pixels of what is run first, so that what is done once is not timed
CAPTION = 16                                                # pixels
SAME, BACK = "same latent", "there and back"
COLUMNS = ("vae", "task", "psnr_db", "ssim", "shift_red", "shift_green", "shift_blue", "encode_s", "decode_s", "peak_mib")
Open = Callable[[], nn.Module]                              # a VAE into memory; the former one may go first
Tell = Callable[[int, int], None]                           # (done, of)


@dataclass(frozen=True, kw_only=True)
class Row:
    """How near one VAE came. psnr: dB; shift: mean of the picture minus that of the reference, levels of 255, red green blue;
    times in seconds; peak: bytes beyond what was taken before; None = not measured."""

    vae: str
    task: str
    psnr: float
    ssim: float
    shift: tuple[float, float, float]
    encode: float | None
    decode: float
    peak: int | None

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of COLUMNS; "" where there is nothing."""
        times = ("" if value is None else f"{value:.3f}" for value in (self.encode, self.decode))
        return (self.vae, self.task, f"{self.psnr:.2f}", f"{self.ssim:.4f}", *(f"{value:+.2f}" for value in self.shift), *times,
                "" if self.peak is None else f"{self.peak / 2 ** 20:.0f}")


@dataclass(frozen=True, kw_only=True)
class Bench:
    rows: tuple[Row, ...]
    notes: tuple[str, ...]                                  # sentences about what was left out or ran otherwise than asked
    sheet: Image.Image                                      # the reference, and under each name its pictures

    def lines(self) -> tuple[str, ...]:
        """The table, then the notes."""
        table = [COLUMNS, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        sides = [str.ljust if place < 2 else str.rjust for place in range(len(COLUMNS))]
        padded = ([side(text, width) for side, text, width in zip(sides, line, widths, strict=True)] for line in table)
        return (*("  ".join(line).rstrip() for line in padded), *self.notes)

    def csv(self) -> str:
        made = io.StringIO()
        csv.writer(made, lineterminator="\n").writerows([COLUMNS, *(row.cells() for row in self.rows)])
        return made.getvalue()


@dataclass(frozen=True)
class _Alone:
    """A VAE where latents.py expects a model; its latents are the VAE's own."""

    vae: nn.Module
    device: torch.device
    latent: LatentFormat


def bench(vaes: Mapping[str, Open], *, image: Image.Image | None = None, latent: Tensor | None = None, scale: float = SD1_SCALE,
          device: torch.device, tell: Tell = lambda done, of: None) -> Bench:
    """Measure each VAE (name -> how to open it; one at a time is held) on a picture, or on a latent (1, C, h, w) as the U-Net knows it.

    With a picture its latent is the first VAE's mean, and what is measured against is the picture; with a latent it is what the first VAE
    decodes. scale: latent = scale * z. tell(done, of) after each VAE and may raise to stop.
    Raises RequestError for no VAE, both or neither, or a picture that is too small; CheckpointError where the first VAE cannot begin.
    """
    if not vaes or (image is None) == (latent is None):
        raise RequestError("A bench needs at least one VAE, and either a picture or a latent.")
    pixels = convert.to_pixels(fitting(image)) if image else None
    run = _Run(device, pixels=pixels, z=latent.float() / scale if latent is not None else None)
    for number, (name, open_) in enumerate(vaes.items()):
        run.take(name, _alone(open_(), device))
        tell(number + 1, len(vaes))
    return Bench(rows=tuple(run.rows), notes=tuple(dict.fromkeys(run.notes)), sheet=grid(run.pictures))


def open_vae(path: Path, *, device: torch.device, dtype: torch.dtype, scale: float = SD1_SCALE) -> nn.Module:
    """The VAE of a VAE's file or a checkpoint, ready to run. Raises CheckpointError naming the file."""
    try:
        prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in read.header(path))), "")
        found = plain_names(read.weights(path, lambda name: name.startswith(prefix) and not name.startswith(load.NOT_WEIGHTS),
                                         lambda name, tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor))
        vae = autoencoder_from(found, read.metadata(path), scale=scale)
    except CheckpointError as error:
        raise error if path.name in str(error) else CheckpointError(f"{path.name} cannot be used as a VAE: {error}") from error
    layers.replace(vae, layers.chooser(layers.usual(device, dtype)))
    return vae.to(device)


def read_latent(path: Path) -> Tensor:
    """The tensor "latent" of a .safetensors file, or its only one: (1, C, h, w), the first of several. Raises CheckpointError."""
    found = read.weights(path)
    latent = found.get("latent", next(iter(found.values())) if len(found) == 1 else None)
    if latent is None or latent.dim() not in (3, 4) or not latent.is_floating_point():
        raise CheckpointError(f"{path.name} holds no tensor “latent” of channels, height and width.")
    return latent[:1].float() if latent.dim() == 4 else latent[None].float()


def fitting(image: Image.Image, longest: int = 0) -> Image.Image:
    """The picture in RGB, made smaller if an edge is longer than `longest` pixels (0 = never); of that the middle, in a size for any VAE.

    Raises RequestError for a picture that is too small.
    """
    if longest and max(image.size) > longest:
        width, height = (max(1, round(edge * longest / max(image.size))) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    width, height = (edge // EVEN * EVEN for edge in image.size)
    if not width or not height:
        raise RequestError(f"The picture has {image.width} × {image.height} pixels; choose one of at least {EVEN} × {EVEN}.")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.convert("RGB").crop((left, top, left + width, top + height))


# ---- running

@dataclass
class _Measure:
    seconds: float = 0.0
    peak: int | None = None


class _Run:
    """What has been measured so far. z: the latent that all are given; the first VAE makes it where there is none."""

    def __init__(self, device: torch.device, *, pixels: Tensor | None, z: Tensor | None) -> None:
        self.device, self._pixels, self._z = device, pixels, z
        self._reference = convert.to_images(pixels)[0] if pixels is not None else None
        self._first = ""
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.pictures = [_captioned(self._reference, "reference")] if self._reference else []

    def take(self, name: str, alone: _Alone) -> None:
        """Run and judge one VAE."""
        _warm(alone)
        if self._pixels is not None and latents.encodes(alone.vae):
            with _measured(self.device) as encoding:
                own = latents.encode(alone, self._pixels, tell=self._noting(name))
            self._z = own if self._z is None else self._z
            self._judge(name, BACK, *self._decode(name, alone, own), encoding)
        if self._z is not None and self._fits(alone):
            self._judge(name, SAME, *self._decode(name, alone, self._z))
        elif not self._first:
            raise CheckpointError(f"{name} cannot begin a bench: it only decodes, or is not made for this latent; name another first.")
        else:
            self.notes.append(f"{name} has other latents than {self._first} and was not given the same one.")
        self._first = self._first or name

    def _fits(self, alone: _Alone) -> bool:
        """Does the common latent give a picture of the right size?"""
        assert self._z is not None
        width, height = (self._z.shape[axis] * alone.latent.downscale for axis in (-1, -2))
        return self._z.shape[1] == alone.latent.channels and (self._reference is None or self._reference.size == (width, height))

    def _decode(self, name: str, alone: _Alone, z: Tensor) -> tuple[Image.Image, _Measure]:
        with _measured(self.device) as measure:
            pixels = latents.decode(alone, z.to(self.device), tell=self._noting(name))
        return convert.to_images(pixels)[0], measure

    def _judge(self, name: str, task: str, image: Image.Image, decoding: _Measure, encoding: _Measure | None = None) -> None:
        truth = self._reference = self._reference or image
        peaks = [one.peak for one in (encoding, decoding) if one and one.peak is not None]
        self.rows.append(Row(
            vae=name, task=task, psnr=psnr(truth, image), ssim=ssim(truth, image), shift=colour_shift(truth, image),
            encode=encoding.seconds if encoding else None, decode=decoding.seconds, peak=max(peaks, default=None)))
        self.pictures.append(_captioned(image, f"{name}, {task}"))

    def _noting(self, name: str) -> Callable[[str], None]:
        return lambda said: self.notes.append(f"{name}: {said}")


def _alone(vae: nn.Module, device: torch.device) -> _Alone:
    config: Any = vae.config
    return _Alone(vae, device, LatentFormat(channels=config.latent, downscale=config.downscale, scale=1.0))


def _warm(alone: _Alone) -> None:
    edge = max(1, WARM // alone.latent.downscale)
    latents.decode(alone, torch.zeros(1, alone.latent.channels, edge, edge, device=alone.device), tell=lambda said: None)
    if latents.encodes(alone.vae):
        latents.encode(alone, torch.zeros(1, 3, WARM, WARM), tell=lambda said: None)


@contextmanager
def _measured(device: torch.device) -> Iterator[_Measure]:
    """Time and memory of what runs inside."""
    measure, before = _Measure(), _peak_begins(device)
    begun = time.perf_counter()
    yield measure
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    measure.seconds = time.perf_counter() - begun
    now = _peak(device)
    measure.peak = None if before is None or now is None else max(0, now - before)


def _peak_begins(device: torch.device) -> int | None:
    """Bytes taken now; the peak is counted anew from here. None where the system cannot."""
    if device.type == "cpu":
        with suppress(AttributeError, OSError, TypeError):  # glibc: what was freed shall not hide what is taken
            ctypes.CDLL(None).malloc_trim(0)
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")                             # Linux: the high water mark falls to what is taken now
        except OSError:
            return None
    elif device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    return _peak(device)


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            said = next((line for line in file if line.startswith("VmHWM:")), "")
    except OSError:
        return None
    return int(said.split()[1]) * 1024 if said else None


# ---- judging

def _levels(image: Image.Image) -> Tensor:
    """(3, H, W) float64, 0..255."""
    return ((convert.to_pixels(image)[0].double() + 1.0) * 127.5).round()


def psnr(truth: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise of two pictures of one size, dB; infinite for equal ones."""
    error = float((_levels(truth) - _levels(other)).square().mean())
    return math.inf if error == 0 else 10.0 * math.log10(255.0 ** 2 / error)


def ssim(truth: Image.Image, other: Image.Image) -> float:
    """Structural similarity of two pictures of one size, mean of the three colours; 1 for equal ones. Wang et al. 2004, IEEE TIP 13."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    bell = torch.exp(-offsets.square() / (2 * SPREAD ** 2))
    bell = bell / bell.sum()

    def smooth(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values[:, None], bell[None, None, :, None]), bell[None, None, None])

    one, two = _levels(truth), _levels(other)
    steady, contrast = ((k * 255.0) ** 2 for k in STABILITY)
    mean_one, mean_two = smooth(one), smooth(two)
    variances = smooth(one * one) - mean_one ** 2 + smooth(two * two) - mean_two ** 2
    together = smooth(one * two) - mean_one * mean_two
    alike = (2 * mean_one * mean_two + steady) * (2 * together + contrast)
    return float((alike / ((mean_one ** 2 + mean_two ** 2 + steady) * (variances + contrast))).mean())


def colour_shift(truth: Image.Image, other: Image.Image) -> tuple[float, float, float]:
    """How much redder, greener, bluer the other is in the mean, levels of 255."""
    red, green, blue = (_levels(other) - _levels(truth)).mean((1, 2)).tolist()
    return red, green, blue


def _captioned(image: Image.Image, words: str) -> Image.Image:
    made = Image.new("RGB", (image.width, image.height + CAPTION), "#ffffff")
    made.paste(image, (0, CAPTION))
    ImageDraw.Draw(made).text((2, 2), words, fill="#000000")
    return made


