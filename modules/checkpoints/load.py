"""From a file to a Model: judged by its header first, then read tensor by tensor into the wanted type, then moved."""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.checkpoints import read
from modules.checkpoints.layout import Contents
from modules.core import hardware
from modules.core.errors import CheckpointError, OutOfMemoryError, UnsafeFileError
from modules.families import autoencoders
from modules.families.base import Model
from modules.families.catalogue import family_of
from modules.families.keys import UNET, VAE
from modules.networks import layers

NOT_WEIGHTS = ("model_ema.", "optimizer", "lr_scheduler")   # what training leaves in a file and no picture needs
OWN_VAE = (VAE, "vae.")
SIDECAR = re.compile(r'^\s*parameterization:\s*"?v"?\s*$', re.MULTILINE)    # in the .yaml that some checkpoints have beside them
SIDECAR_LENGTH = 65536                                      # bytes looked at


def load(path: str | os.PathLike[str], *, device: torch.device | str, dtype: torch.dtype, prediction: str = "Auto",
         vae_path: str | os.PathLike[str] | None = None, verified: bool = False, kind: str = "") -> Model:
    """The model in this file, on `device` in `dtype`. At the peak it takes the result's memory and two tensors more.

    prediction: Auto (the file's metadata, else guessed), eps or v. vae_path: a VAE instead of the file's own.
    verified: `verify` was just passed, and need not be asked again before values are read. kind: one of networks.layers.KINDS;
    "" = the usual one of this device.
    Raises CheckpointError naming file and cause, or OutOfMemoryError.
    """
    path, vae_path = Path(path), Path(vae_path) if vae_path else None
    if not verified:
        verify(path, prediction=prediction, vae_path=vae_path)
    with _named(path):
        kind = kind or layers.usual(torch.device(device), dtype)
        found = read.weights(path, _wanted(without_vae=vae_path is not None), _cast(dtype, kind))
        if vae_path:
            found |= {VAE + name: tensor for name, tensor in _vae_weights(vae_path, dtype, kind).items()}
        model = family_of({name: tuple(tensor.shape) for name, tensor in found.items()}).build(
            found, _hints(path, read.metadata(path), prediction))
        del found                                           # else a layer that is replaced would stay in memory beside its successor
        _lay(networks(model), kind)
    model.dtype, model.layers = dtype, kind
    model.vae_name = vae_path.name if vae_path else ""
    return move(model, torch.device(device))


def verify(path: str | os.PathLike[str], *, prediction: str = "Auto", vae_path: str | os.PathLike[str] | None = None) -> int:
    """Build the model without a value in it, from the header alone; the number of values it will hold. Raises CheckpointError."""
    path = Path(path)
    with _named(path):
        contents = read.contents(path)
        _check_types(contents)
        hollow = _hollow(contents, _wanted(without_vae=vae_path is not None))
    if vae_path:
        with _named(Path(vae_path)):
            hollow |= {VAE + name: tensor for name, tensor in _hollow_vae(vae_path, hollow).items()}
    with _named(path):
        model = family_of({name: tuple(tensor.shape) for name, tensor in hollow.items()}).build(
            hollow, _hints(path, contents.metadata, prediction))
    return sum(tensor.numel() for network in networks(model) for tensor in network.parameters())


def _hollow_vae(path: str | os.PathLike[str], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors without values, names without prefix. Raises CheckpointError where its latents are not those of the model's U-Net."""
    contents = read.contents(path)
    found = _root_names(_hollow(contents, _wanted()))
    latent = autoencoders.autoencoder_from(found, contents.metadata).config.latent
    last = model.get(f"{UNET}out.2.weight")
    if last is not None and last.shape[0] != latent:
        raise CheckpointError(f"Its latents have {latent} channels, and the model's {last.shape[0]}; choose a VAE made for this model.")
    return found


def load_vae(path: str | os.PathLike[str], model: Model) -> nn.Module:
    """Another VAE for a model in memory, from a VAE's file or a whole checkpoint, on the model's device in its type.

    Raises CheckpointError naming file and cause, also when its latents are not the model's.
    """
    path = Path(path)
    with _named(path):
        contents = read.contents(path)
        _check_types(contents)
        hints = dict(model.hints) | dict(contents.metadata)
        hollow = autoencoders.autoencoder_from(_root_names(_hollow(contents, _wanted())), hints)
        if (hollow.config.latent, hollow.config.downscale) != (model.latent.channels, model.latent.downscale):
            raise CheckpointError(f"Its latents have {hollow.config.latent} channels of {hollow.config.downscale} pixels, and the model's "
                                  f"{model.latent.channels} of {model.latent.downscale}; choose a VAE made for {model.family.name}.")
        vae = autoencoders.autoencoder_from(_vae_weights(path, model.dtype, model.layers), hints)
        _lay([vae], model.layers)
        return _moved(vae, model.device)


def check_values(path: str | os.PathLike[str], vae_path: str | os.PathLike[str] | None = None) -> None:
    """Read every value once without keeping it: for machines that cannot hold two models. Raises CheckpointError."""
    for file, wanted in ((path, _wanted(without_vae=vae_path is not None)), *(((vae_path, _wanted()),) if vae_path else ())):
        with _named(Path(file)):
            read.weights(file, wanted, lambda name, tensor: tensor.new_empty(0))


def move(model: Model, device: torch.device) -> Model:
    """The same model with its networks on `device`. Raises OutOfMemoryError."""
    for network in networks(model):
        _moved(network, device)
    model.device = device
    return model


def networks(model: Model) -> tuple[nn.Module, ...]:
    return model.unet, model.vae, *model.text


def _lay(found: Iterable[nn.Module], kind: str) -> None:
    choose = layers.chooser(kind)
    with hardware.side_by_side() as pool:
        for network in found:
            layers.replace(network, choose, pool)


def _moved(network: nn.Module, device: torch.device) -> nn.Module:
    try:
        return network if device.type == "cpu" else network.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError("The graphics card has no room for this model; close other programs or use --cpu.") from error


def _wanted(*, without_vae: bool = False) -> Callable[[str], bool]:
    away = NOT_WEIGHTS + (OWN_VAE if without_vae else ())
    return lambda name: not name.startswith(away)


def _cast(dtype: torch.dtype, kind: str) -> Callable[[str, Tensor], Tensor]:
    """Real numbers in the wanted type, and convolutions' weights in the order in which they will run, so that no network copies them
    again; those that will be packed are widened only then. Tables of the schedule stay as the file has them, since their type tells how
    far to trust them."""
    slab, soon = read.Slab(), read.Slab()                   # soon: what the packing will take the place of

    def change(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or name in read.SCHEDULE:
            return tensor
        if kind == "packed" and tensor.dim() == 4:
            return soon.take(tensor.nbytes).view(tensor.dtype).view(tensor.shape).copy_(tensor)
        place = slab.take(tensor.numel() * dtype.itemsize).view(dtype)
        if kind == "channels_last" and tensor.dim() == 4:
            out, channels, height, width = tensor.shape
            return place.view(out, height, width, channels).permute(0, 3, 1, 2).copy_(tensor)
        return place.view(tensor.shape).copy_(tensor)

    return change


def _vae_weights(path: Path, dtype: torch.dtype, kind: str) -> dict[str, Tensor]:
    """The VAE in a file, whether it lies alone there or inside a checkpoint; names without prefix."""
    with _named(path):
        names = read.header(path)
        prefix = _prefix(names)
        return _root_names(read.weights(path, lambda name: _wanted()(name) and name.startswith(prefix), _cast(dtype, kind)))


def _prefix(names: Mapping[str, object]) -> str:
    return next((prefix for prefix in OWN_VAE if any(name.startswith(prefix) for name in names)), "")


def _root_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = _prefix(tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _hollow(contents: Contents, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Tensors with shape and type but no memory; without the schedule, whose values would be looked at."""
    return {name: torch.empty(slot.shape, dtype=getattr(torch, slot.dtype), device="meta")
            for name, slot in contents.slots.items() if wanted(name) and name not in read.SCHEDULE}


def _check_types(contents: Contents) -> None:
    if any(name.endswith("scaled_fp8") for name in contents.slots):
        raise CheckpointError("Its weights are scaled 8-bit numbers, which Easel does not read yet; choose a 16-bit version.")


def _hints(path: Path, metadata: Mapping[str, str], prediction: str) -> dict[str, str]:
    """What stands beside the tensors: the file's metadata, a .yaml of the same name, the user's choice."""
    hints = dict(metadata)
    try:
        with open(path.with_suffix(".yaml"), encoding="utf-8") as file:
            if SIDECAR.search(file.read(SIDECAR_LENGTH)):
                hints.setdefault("modelspec.prediction_type", "v")
    except (OSError, ValueError):                           # none there, or none that is text
        return hints | {"prediction": prediction}
    return hints | {"prediction": prediction}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Every fault names the file that it was found in, once."""
    try:
        yield
    except CheckpointError as error:
        if path.name in str(error):
            raise
        kind = UnsafeFileError if isinstance(error, UnsafeFileError) else CheckpointError
        raise kind(f"{path.name} cannot be used: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise OutOfMemoryError(f"There is not enough memory to load {path.name}; close other programs and try again.") from error
        raise
