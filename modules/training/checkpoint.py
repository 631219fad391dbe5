"""Trained networks to a file in the published single-file layout of Stable Diffusion 1, and from a file to networks that can be trained."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modules.checkpoints import load, read
from modules.core.errors import CheckpointError, NanError
from modules.families import autoencoders
from modules.families.keys import TEXT, UNET, VAE, plain_names
from modules.networks.autoencoder import AutoencoderKL
from modules.networks.clip import ClipText
from modules.networks.unet import UNet
from modules.training import tensors
from modules.training.schedule import Kind, Schedule
from modules.training.tensors import NO_TEXT

PREDICTIONS: Mapping[Kind, str] = {"eps": "epsilon", "x0": "sample", "v": "v"}
DTYPES: Mapping[str, torch.dtype] = {"float16": torch.float16, "float32": torch.float32}
POSITION_IDS = TEXT + "text_model.embeddings.position_ids"


@dataclass(kw_only=True)
class Networks:
    """What a Stable Diffusion 1 file holds, in float32. scale_factor: latent of the U-Net = scale_factor * latent of the VAE."""

    unet: UNet
    vae: AutoencoderKL
    text: ClipText
    scale_factor: float | None = None                       # None = not yet known


def write(path: Path, networks: Networks, schedule: Schedule, *, kind: Kind, title: str, size: int, dtype: torch.dtype = torch.float16,
          extra: Mapping[str, Tensor] | None = None, metadata: Mapping[str, str] = NO_TEXT) -> Path:
    """One .safetensors file of U-Net, VAE, text tower, schedule and scale factor.

    size: edge in pixels that it was trained at. dtype: of the weights; the schedule's tables and the scale stay float32. extra: more
    tensors, such as LitEma.published(). Raises NanError for a weight that this type cannot hold, DiskFullError, SaveError.
    """
    if networks.scale_factor is None:
        raise CheckpointError("The latents' scale is not known before the first step; train for a step at least.")
    named: dict[str, Tensor] = {}
    for prefix, network in ((UNET, networks.unet), (VAE, networks.vae), (TEXT, networks.text)):
        named.update({prefix + name: tensor for name, tensor in network.state_dict().items()})
    config = networks.unet.config
    found = _as(dtype, {**named, **(extra or {})})
    found[POSITION_IDS] = torch.arange(networks.text.config.positions)[None]
    found |= schedule.buffers() | {"scale_factor": torch.tensor(networks.scale_factor, dtype=torch.float32)}
    return tensors.write(path, found, {
        "format": "pt", "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-v1", "modelspec.title": title,
        "modelspec.resolution": f"{size}x{size}", "modelspec.prediction_type": PREDICTIONS[kind], "easel.heads": str(config.heads),
        "easel.norm_groups": str(config.groups), **metadata,
    })


def write_vae(path: Path, vae: AutoencoderKL, *, title: str, size: int, dtype: torch.dtype = torch.float16,
              extra: Mapping[str, Tensor] | None = None, metadata: Mapping[str, str] = NO_TEXT) -> Path:
    """A VAE alone, in root names, as files in a VAE folder have them. Raises as `write`."""
    return tensors.write(path, _as(dtype, {**vae.state_dict(), **(extra or {})}), {
        "format": "pt", "modelspec.sai_model_spec": "1.0.0", "modelspec.title": title, "modelspec.resolution": f"{size}x{size}",
        "easel.norm_groups": str(vae.config.groups), **metadata,
    })


def _as(dtype: torch.dtype, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers' weights in this type; scalars stay as they are."""
    found = {}
    for name, tensor in named.items():
        cast = tensor.detach().to("cpu", dtype) if tensor.dim() and tensor.is_floating_point() else tensor.detach().cpu()
        if not bool(cast.isfinite().all()):
            raise NanError(f"The weight {name} holds values that {dtype} cannot; write float32, or go back to an earlier state.")
        found[name] = cast
    return found


def networks_of(path: Path) -> Networks:
    """The networks of a Stable Diffusion 1 checkpoint, float32 on the CPU, to be trained further. Raises CheckpointError."""
    model = load.load(path, device="cpu", dtype=torch.float32, kind="plain")
    if len(model.text) != 1:
        raise CheckpointError(f"{path.name} is a {model.family.name} model with {len(model.text)} text towers; only those of Stable "
                              "Diffusion 1 can be trained yet.")
    assert isinstance(model.unet, UNet) and isinstance(model.vae, AutoencoderKL)
    for network in (model.unet, *model.text):
        network.requires_grad_(True)
    stored = read.weights(path, lambda name: name == "scale_factor").get("scale_factor")
    scale = float(stored) if stored is not None else float(model.latent.scale)     # type: ignore[arg-type]  # SD1 has one number
    return Networks(unet=model.unet, vae=model.vae, text=model.text[0], scale_factor=scale)


def vae_of(path: Path) -> AutoencoderKL:
    """The VAE of a VAE's file or of a checkpoint, float32 on the CPU. Raises CheckpointError naming the file."""
    try:
        found = plain_names(read.weights(path, lambda name: not name.startswith(load.NOT_WEIGHTS), _widened))
        return autoencoders.kl_from(found, read.metadata(path))
    except CheckpointError as error:
        raise error if path.name in str(error) else CheckpointError(f"{path.name} cannot be used as a VAE: {error}") from error


def _widened(name: str, tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
