"""The autoencoder learns to give back what it was shown. Esser et al. 2021, arXiv:2012.09841; Rombach et al. 2022, arXiv:2112.10752."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.autoencoder import AutoencoderKL
from modules.training import scratch
from modules.training.checkpoint import vae_of
from modules.training.dataset import Order, Source, at_epoch, groups_of
from modules.training.discriminator import PatchDiscriminator, Perceptual
from modules.training.loop import Phase
from modules.training.objectives import posterior_sample
from modules.training.recipe import Recipe

MOST_ADAPTIVE = 1e4


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of N(mean, exp(logvar)) from N(0, 1), summed over all but the first axis -> (B,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def nll(pixels: Tensor, decoded: Tensor, logvar: Tensor, *, pixel: str = "l1", perceptual: Tensor | None = None) -> Tensor:
    """rec / exp(logvar) + logvar, summed over a picture, mean over the batch; 0-d.

    rec is |x - x'| ("l1") or its square ("l2"), plus perceptual (B, 1, 1, 1) at every value.
    """
    rec = (pixels - decoded).abs() if pixel == "l1" else (pixels - decoded).square()
    if perceptual is not None:
        rec = rec + perceptual
    return (rec / logvar.exp() + logvar).sum() / len(pixels)


def adaptive_weight(nll_loss: Tensor, generator_loss: Tensor, last: Tensor) -> Tensor:
    """What makes the gradients of both losses equally long at the decoder's last layer, held to 0..10,000; detached, 0-d."""
    of_nll, = torch.autograd.grad(nll_loss, last, retain_graph=True)
    of_generator, = torch.autograd.grad(generator_loss, last, retain_graph=True)
    return (of_nll.norm() / (of_generator.norm() + 1e-4)).clamp(0.0, MOST_ADAPTIVE).detach()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: half of mean(relu(1 - real)) + mean(relu(1 + fake)). Lim and Ye 2017, arXiv:1705.02894."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


@dataclass(eq=False)
class Batch:
    """pixels (B, 3, H, W) in -1..1; decoded: what the first phase made of them, for the second."""

    pixels: Tensor
    decoded: Tensor | None = None


class Autoencoder:
    """The task of loop.py for a VAE. The first phase moves it, the second, if the recipe wants one, the discriminator.

    The second phase judges the pictures that the first one decoded, so the decoder runs once a step. Losses are shown for one value of a
    picture (the sums divided by their count), which leaves Adam's steps as they are.
    """

    def __init__(self, recipe: Recipe, vae: AutoencoderKL, source: Source, device: torch.device) -> None:
        self.recipe, self.vae, self.device, self._source = recipe, vae, device, source
        wish = recipe.vae_objective
        vae.to(device, memory_format=torch.channels_last).requires_grad_(True).train()     # type: ignore[call-overload]
        self._logvar = nn.Parameter(torch.zeros((), device=device), requires_grad=wish.learn_logvar)
        self.perceptual = Perceptual.of(recipe.path(wish.perceptual_weights)).to(device) if wish.perceptual else None
        first, second = recipe.training.betas
        of_vae = [*vae.parameters(), *([self._logvar] if wish.learn_logvar else [])]
        phases = [Phase("autoencoder", ({"params": of_vae},), (first, second), recipe.training.weight_decay)]
        self.discriminator: PatchDiscriminator | None = None
        if wish.adversarial:
            with scratch.seeded(recipe.seed + 1):
                self.discriminator = PatchDiscriminator(wish.discriminator_channels, wish.discriminator_layers)
            self.discriminator.to(device, memory_format=torch.channels_last).train()     # type: ignore[call-overload]
            phases.append(Phase("discriminator", ({"params": list(self.discriminator.parameters())},), (first, second)))
        self.phases = tuple(phases)
        self._members = [[(index, turned) for index in group for turned in ((False, True) if recipe.data.flip else (False,))]
                         for group in groups_of(source)]
        self._order = Order([len(members) for members in self._members], recipe.training.batch, recipe.seed)

    def tensors(self) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {**self.averaged(), "loss.logvar": self._logvar}
        if self.discriminator:
            found |= {f"loss.discriminator.{name}": tensor for name, tensor in self.discriminator.state_dict().items()}
        return found

    def averaged(self) -> dict[str, Tensor]:
        return dict(self.vae.named_parameters())

    def batch(self, number: int) -> Batch:
        place = self._order(number)
        source = at_epoch(self._source, place.epoch)
        pictures = [source[self._members[place.group][row][0]][0] for row in place.rows]
        turned = [self._members[place.group][row][1] for row in place.rows]
        return Batch(torch.stack([pixels.flip(-1) if flip else pixels for pixels, flip in zip(pictures, turned, strict=True)]))

    def loss(self, phase: int, batch: Batch, generator: torch.Generator, step: int) -> Tensor | None:
        """The loss of the autoencoder or of the discriminator, 0-d; None while the discriminator is not yet listened to."""
        listening = self.discriminator is not None and step >= self.recipe.vae_objective.adversarial_start
        if phase == 0:
            return self._of_autoencoder(batch, generator, listening)
        if not listening or batch.decoded is None:
            return None
        assert self.discriminator is not None
        self.discriminator.requires_grad_(True)
        return hinge(self.discriminator(batch.pixels).float(), self.discriminator(batch.decoded).float())

    def _of_autoencoder(self, batch: Batch, generator: torch.Generator, listening: bool) -> Tensor:
        wish = self.recipe.vae_objective
        batch.pixels = cropped(batch.pixels, self.recipe.data.crop, generator).to(self.device).contiguous(memory_format=torch.channels_last)
        mean, logvar = self.vae.encode(batch.pixels)
        mean, logvar = mean.float(), logvar.float()
        z = posterior_sample(mean, logvar, torch.randn(mean.shape, generator=generator).to(self.device))
        decoded = self.vae.decode(z).float()
        alike = wish.perceptual * self.perceptual(batch.pixels, decoded) if self.perceptual else None
        reconstruction = nll(batch.pixels, decoded, self._logvar, pixel=wish.pixel, perceptual=alike)
        loss = reconstruction + wish.kl * kl(mean, logvar).mean()
        if listening and self.discriminator is not None:
            self.discriminator.requires_grad_(False)
            generated = -self.discriminator(decoded).float().mean()
            last = self.vae.decoder.conv_out.weight
            loss = loss + wish.adversarial * adaptive_weight(reconstruction, generated, last) * generated
            batch.decoded = decoded.detach()
        return loss / batch.pixels[0].numel()


def cropped(pixels: Tensor, edge: int, generator: torch.Generator) -> Tensor:
    """A square of this edge from a random place of each picture (B, 3, H, W); the whole if edge is 0 or larger than the picture."""
    if not edge or edge > min(pixels.shape[-2:]):
        return pixels
    tops = torch.randint(pixels.shape[-2] - edge + 1, (len(pixels),), generator=generator).tolist()
    lefts = torch.randint(pixels.shape[-1] - edge + 1, (len(pixels),), generator=generator).tolist()
    return torch.stack([picture[:, top:top + edge, left:left + edge] for picture, top, left in zip(pixels, tops, lefts, strict=True)])


def vae_for(recipe: Recipe) -> AutoencoderKL:
    """The VAE that a recipe begins with, float32 on the CPU. Raises CheckpointError."""
    if recipe.model.vae:
        return vae_of(recipe.path(recipe.model.vae))
    with scratch.seeded(recipe.seed):
        return scratch.vae(recipe)
