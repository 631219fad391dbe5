"""The U-Net, and with it the text tower, learn to see the picture in the noise. Rombach et al. 2022, arXiv:2112.10752."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from modules.core.errors import SettingsError
from modules.networks.autoencoder import AutoencoderKL
from modules.networks.clip import ClipText
from modules.networks.unet import UNet
from modules.prompts.tokens import Tokenizer, chunks
from modules.training import objectives, scratch
from modules.training.checkpoint import Networks, networks_of, vae_of
from modules.training.dataset import Order, Source, at_epoch, caption_of, groups_of
from modules.training.latents import Group
from modules.training.loop import Phase
from modules.training.recipe import Recipe
from modules.training.schedule import Schedule, q_sample, register_schedule

Conditioning = Literal["none", "concat", "crossattn", "hybrid"]


@dataclass(frozen=True, eq=False)
class Batch:
    """mean, logvar (B, C, h, w) of unscaled latents; concat (B, D, h, w) or None."""

    mean: Tensor
    logvar: Tensor
    captions: Sequence[str]
    concat: Tensor | None = None


class Batches(Protocol):
    """The n-th batch, the same whenever it is asked for."""

    def __call__(self, number: int) -> Batch: ...


class FromLatents:
    """Batches of latents that lie in memory; captions and what is shown beside them come from the source."""

    def __init__(self, groups: Sequence[Group], source: Source, batch: int, seed: int, device: torch.device) -> None:
        self.groups, self.source, self.device = groups, source, device
        self._order = Order([len(group) for group in groups], batch, seed)
        self._told = hasattr(source, "caption")

    def __call__(self, number: int) -> Batch:
        place = self._order(number)
        group, rows = self.groups[place.group], torch.tensor(place.rows)
        source = at_epoch(self.source, place.epoch)
        captions = [caption_of(source, group.indices[row]) if self._told else group.captions[row] for row in place.rows]
        moments = torch.stack((group.mean[rows], group.logvar[rows])).to(self.device).float()
        beside = [_beside(source, group.indices[row], group.flipped[row]) for row in place.rows]
        return Batch(moments[0], moments[1], captions, _stacked(beside, self.device))


class FromPictures:
    """Batches that are encoded when they are wanted: for sources that never show the same picture twice."""

    def __init__(self, source: Source, vae: AutoencoderKL, batch: int, seed: int, device: torch.device, *, flip: bool = False) -> None:
        self.source, self.vae, self.device = source, vae, device
        self._members = [[(index, turned) for index in group for turned in ((False, True) if flip else (False,))]
                         for group in groups_of(source)]
        self._order = Order([len(members) for members in self._members], batch, seed)

    @torch.no_grad()
    def __call__(self, number: int) -> Batch:
        place = self._order(number)
        source = at_epoch(self.source, place.epoch)
        members = [self._members[place.group][row] for row in place.rows]
        pictures = [source[index] for index, _ in members]
        pixels = torch.stack([pixels.flip(-1) if turned else pixels for (pixels, _), (_, turned) in zip(pictures, members, strict=True)])
        mean, logvar = self.vae.encode(pixels.to(self.device))
        beside = [_beside(source, index, turned) for index, turned in members]
        return Batch(mean, logvar, [caption for _, caption in pictures], _stacked(beside, self.device))


def _beside(source: Source, index: int, turned: bool) -> Tensor | None:
    concat = getattr(source, "concat", None)
    if concat is None:
        return None
    found: Tensor = concat(index)
    return found.flip(-1) if turned else found


def _stacked(beside: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    tensors = [tensor for tensor in beside if tensor is not None]
    return torch.stack(tensors).to(device).float() if tensors else None


def predicted(unet: Callable[..., Tensor], conditioning: Conditioning, x: Tensor, t: Tensor, *, cross: Tensor | None = None,
              concat: Tensor | None = None, width: int = 1) -> Tensor:
    """The network's output for x (B, C, h, w) at t (B,) int64, told in one of four ways.

    crossattn: text cross (B, T, D); concat: channels (B, K, h, w) beside x; hybrid: both; none: nothing. Where there is no text the network
    looks at one token of zeros, `width` wide. Raises SettingsError if what the way needs is missing.
    """
    if conditioning in ("concat", "hybrid"):
        if concat is None:
            raise SettingsError(f"The conditioning {conditioning} needs pictures that come with channels to show beside them; "
                                "a folder has none: use a source with `concat`.")
        x = torch.cat((x, concat), dim=1)
    if conditioning in ("none", "concat"):
        cross = x.new_zeros(len(x), 1, width)
    assert cross is not None
    return unet(x, t.float(), cross)


class Captions:
    """Captions as a text tower reads them. The same ones come again and again, so the last 65,536 are kept."""

    def __init__(self, tokenizer: Tokenizer, pad_id: int) -> None:
        self._ids = lru_cache(maxsize=65536)(lambda caption: chunks(caption, tokenizer, emphasis="None")[0].padded(pad_id))

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, 77) int64: start, at most 75 tokens, end, padding."""
        return torch.tensor([self._ids(caption) for caption in captions])


class Diffusion:
    """The task of loop.py for a model in the layout of Stable Diffusion 1."""

    def __init__(self, recipe: Recipe, networks: Networks, batches: Batches, tokenizer: Tokenizer, device: torch.device) -> None:
        self.recipe, self.networks, self.device = recipe, networks, device
        self._batches = batches
        self.schedule: Schedule = schedule_of(recipe).to(device)
        self._captions = Captions(tokenizer, networks.text.pad_id)
        self.reads_text = recipe.objective.conditioning in ("crossattn", "hybrid")
        wish = "no" if recipe.model.checkpoint and recipe.text.train == "auto" else recipe.text.train
        self.trains_text = wish != "no" and self.reads_text
        networks.unet.to(device, memory_format=torch.channels_last).requires_grad_(True).train()     # type: ignore[call-overload]
        networks.text.to(device).requires_grad_(self.trains_text).train(self.trains_text)
        networks.vae.to(device).requires_grad_(False).eval()
        self._scale = torch.tensor(networks.scale_factor or 0.0, dtype=torch.float64)      # 0 = not yet measured
        self.phases = (self._phase(),)

    def _phase(self) -> Phase:
        groups: list[dict[str, object]] = [{"params": list(self.networks.unet.parameters())}]
        if self.trains_text:
            own = self.recipe.text.lr / self.recipe.training.lr if self.recipe.text.lr and self.recipe.training.lr else 1.0
            groups.append({"params": list(self.networks.text.parameters()), "scale": own})
        first, second = self.recipe.training.betas
        return Phase("loss", tuple(groups), (first, second), self.recipe.training.weight_decay)

    @property
    def scale_factor(self) -> float | None:
        """latent of the U-Net = scale_factor * latent of the VAE; None before the first batch of a run that measures it."""
        return float(self._scale) or None

    def tensors(self) -> Mapping[str, Tensor]:
        """Weights that change, and the scale."""
        return {**self.averaged(), "scale_factor": self._scale}

    def averaged(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {f"diffusion_model.{name}": tensor for name, tensor in self.networks.unet.named_parameters()}
        if self.trains_text:
            found |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in self.networks.text.named_parameters()}
        return found

    def batch(self, number: int) -> Batch:
        return self._batches(number)

    def loss(self, phase: int, batch: Batch, generator: torch.Generator, step: int) -> Tensor:
        """The objective of the recipe on one batch, 0-d."""
        wish = self.recipe.objective

        def draws(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device)

        z = objectives.posterior_sample(batch.mean, batch.logvar, draws(*batch.mean.shape))
        if self.scale_factor is None:
            self._scale.fill_(objectives.scale_by_std(z))
        x0 = z * float(self._scale)
        noise = draws(*x0.shape)
        if wish.offset_noise:
            noise = objectives.offset_noise(noise, draws(*x0.shape[:2], 1, 1), wish.offset_noise)
        t = torch.randint(len(self.schedule), (len(x0),), generator=generator).to(self.device)
        dropped = torch.rand(len(x0), generator=generator)
        put_in = objectives.perturbed(noise, draws(*x0.shape), wish.perturbation) if wish.perturbation else noise
        x = q_sample(self.schedule, x0, t, put_in).contiguous(memory_format=torch.channels_last)
        cross = self.encoded(objectives.without_captions(batch.captions, dropped, wish.caption_dropout)) if self.reads_text else None
        with _attention(self.device):
            output = predicted(
                self.networks.unet, wish.conditioning, x, t,     # type: ignore[arg-type]
                cross=cross, concat=batch.concat, width=self.networks.text.width)
        each = objectives.distance(output, objectives.target(wish.prediction, self.schedule, x0, noise, t), wish.distance)     # type: ignore[arg-type]
        return objectives.total(each, t, self.schedule, weight=self._weight(t), elbo=wish.elbo)

    def _weight(self, t: Tensor) -> Tensor | None:
        wish = self.recipe.objective
        if wish.weight == "none":
            return None
        snr = self.schedule.snr[t]
        if wish.weight == "min_snr":
            return objectives.min_snr_weight(wish.prediction, snr, wish.gamma)     # type: ignore[arg-type]
        return objectives.debiased_weight(wish.prediction, snr)     # type: ignore[arg-type]

    def encoded(self, captions: Sequence[str]) -> Tensor:
        """(B, 77, D); gradients flow where the tower is trained."""
        with torch.set_grad_enabled(self.trains_text and torch.is_grad_enabled()):
            return self.networks.text.encode(self._captions(captions).to(self.device))[0]

    def finished(self) -> Networks:
        """The networks with the scale that was measured."""
        return Networks(unet=self.networks.unet, vae=self.networks.vae, text=self.networks.text, scale_factor=self.scale_factor)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """torch's fused attention has a backward on the CPU that takes, for narrow heads, three times as long as the plain products."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def schedule_of(recipe: Recipe) -> Schedule:
    """The tables that the recipe asks for. Raises ScheduleError."""
    wish = recipe.objective
    return register_schedule(wish.prediction, wish.betas, first=wish.first, last=wish.last,     # type: ignore[arg-type]
                             zero_terminal_snr=wish.zero_terminal_snr)


def networks_for(recipe: Recipe) -> Networks:
    """The networks that a recipe begins with, float32 on the CPU. Raises CheckpointError, or SettingsError where parts do not fit."""
    wish = recipe.objective
    if recipe.model.checkpoint:
        networks = networks_of(recipe.path(recipe.model.checkpoint))
        if recipe.model.vae:
            networks.vae = vae_of(recipe.path(recipe.model.vae))
    else:
        vae, text = vae_of(recipe.path(recipe.model.vae)), None
        with scratch.seeded(recipe.seed):
            text = scratch.text(recipe)
            unet = scratch.unet(recipe, context=text.width, latent=vae.config.latent)
        networks = Networks(unet=unet, vae=vae, text=text)
    networks.scale_factor = wish.scale_factor or networks.scale_factor
    _check_fit(recipe, networks.unet, networks.vae, networks.text)
    return networks


def _check_fit(recipe: Recipe, unet: UNet, vae: AutoencoderKL, text: ClipText) -> None:
    """Raises SettingsError for parts that cannot work together, or could not be told apart in one file."""
    shown = unet.config.in_channels - vae.config.latent
    if vae.config.latent != unet.config.out_channels or shown < 0:
        raise SettingsError(f"The VAE's latents have {vae.config.latent} channels, the U-Net's {unet.config.out_channels}; "
                            "choose another VAE.")
    if bool(shown) != (recipe.objective.conditioning in ("concat", "hybrid")):
        raise SettingsError(f"The U-Net takes {shown} channels beside the latent, which does not fit the conditioning "
                            f"{recipe.objective.conditioning}; change objective.conditioning.")
    if unet.config.groups != vae.config.groups:
        raise SettingsError(f"The VAE is normalised in {vae.config.groups} groups and the U-Net in {unet.config.groups}; a file can tell "
                            "only one number, so set model.norm_groups to the VAE's.")
    if any(level.channels % unet.config.heads for level in unet.config.levels):
        raise SettingsError(f"unet.heads is {unet.config.heads}, which does not divide the channels of every level; choose another number.")
    cell = vae.config.downscale * 2 ** (len(unet.config.levels) - 1)
    if recipe.data.size % cell:
        raise SettingsError(f"data.size is {recipe.data.size}; with these networks it must be a multiple of {cell} pixels.")
