"""From a file to a Model: judged by its header first, then read tensor by tensor into the wanted type, then moved."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from modules.checkpoints import read, sidecars
from modules.checkpoints.layout import Contents, shadow_of
from modules.core import hardware
from modules.core.errors import CheckpointError, OutOfMemoryError, UnsafeFileError
from modules.families import autoencoders
from modules.families.base import Model
from modules.families.catalogue import family_of
from modules.families.keys import UNET, VAE
from modules.networks import layers

NOT_WEIGHTS = ("model_ema.", "optimizer", "lr_scheduler")   # what training leaves in a file and no picture needs
OWN_VAE = (VAE, "vae.")
MANY = 100                                                  # more averages than this, and a file is one that carries them
SCALE = ".scale_weight"                                     # what a layer's 8-bit weights have to be multiplied by
NOT_LAYERS = (SCALE, ".scale_input", "scaled_fp8")          # beside such weights
UNKNOWN = (".comfy_quant", ".absmax", ".quant_map", ".qweight", ".weight_scale", ".SCB")    # beside weights that are packed otherwise
NO_SCALES: Mapping[str, Tensor] = MappingProxyType({})


def load(path: str | os.PathLike[str], *, device: torch.device | str, dtype: torch.dtype, prediction: str = "Auto",
         vae_path: str | os.PathLike[str] | None = None, verified: bool = False, kind: str = "", ema: bool | None = None) -> Model:
    """The model in this file or folder, on `device` in `dtype`. At the peak it takes the result's memory and two tensors more.

    prediction: Auto (the file's metadata, else guessed), eps or v. vae_path: a VAE instead of the file's own.
    ema: the U-Net's weights averaged over training in place of the last ones, and a VAE's where its file has them; None = as "easel.ema"
    beside the file says, else as the family wants it where the file has them.
    verified: `verify` was just passed, and need not be asked again before values are read. kind: one of networks.layers.KINDS;
    "" = the usual one of this device.
    Raises CheckpointError naming file and cause, or OutOfMemoryError.
    """
    path, vae_path = Path(path), Path(vae_path) if vae_path else None
    if not verified:
        verify(path, prediction=prediction, vae_path=vae_path, ema=ema)
    with _named(path):
        kind = kind or layers.usual(torch.device(device), dtype)
        contents = read.contents(path)
        ema = _averages(path, contents) if ema is None else ema
        found = _weights(path, contents, _taken(contents, without_vae=vae_path is not None, ema=ema), dtype, kind)
        if vae_path:
            found |= {VAE + name: tensor for name, tensor in _vae_weights(vae_path, dtype, kind, ema).items()}
        model = family_of({name: tuple(tensor.shape) for name, tensor in found.items()}).build(
            found, _hints(path, contents.metadata, prediction, ema))
        del found                                           # else a layer that is replaced would stay in memory beside its successor
        _lay(networks(model), kind)
    model.dtype, model.layers = dtype, kind
    model.vae_name = vae_path.name if vae_path else ""
    return move(model, torch.device(device))


def verify(path: str | os.PathLike[str], *, prediction: str = "Auto", vae_path: str | os.PathLike[str] | None = None,
           ema: bool | None = None) -> int:
    """Build the model without a value in it, from the header alone; the number of values it will hold. Raises CheckpointError."""
    path = Path(path)
    with _named(path):
        contents = read.contents(path)
        _check_types(contents)
        ema = _averages(path, contents) if ema is None else ema
        hollow = _hollow(contents, _taken(contents, without_vae=vae_path is not None, ema=ema))
    if vae_path:
        with _named(Path(vae_path)):
            hollow |= {VAE + name: tensor for name, tensor in _hollow_vae(vae_path, hollow, ema).items()}
    with _named(path):
        model = family_of({name: tuple(tensor.shape) for name, tensor in hollow.items()}).build(
            hollow, _hints(path, contents.metadata, prediction, ema))
    return sum(tensor.numel() for network in networks(model) for tensor in network.parameters())


def _hollow_vae(path: str | os.PathLike[str], model: Mapping[str, Tensor], ema: bool) -> dict[str, Tensor]:
    """A VAE's tensors without values, names without prefix. Raises CheckpointError where its latents are not those of the model's U-Net."""
    contents = read.contents(path)
    _check_types(contents)
    found = _root_names(_hollow(contents, _taken(contents, only_vae=True, ema=ema)))
    latent = autoencoders.autoencoder_from(found, contents.metadata).config.latent
    last = model.get(f"{UNET}out.2.weight")
    if last is not None and last.shape[0] != latent:
        raise CheckpointError(f"Its latents have {latent} channels, and the model's {last.shape[0]}; choose a VAE made for this model.")
    return found


def load_vae(path: str | os.PathLike[str], model: Model, *, ema: bool = False) -> nn.Module:
    """Another VAE for a model in memory, from a VAE's file or a whole checkpoint, on the model's device in its type.

    ema: its averaged weights where its file has them.
    Raises CheckpointError naming file and cause, also when its latents are not the model's.
    """
    path = Path(path)
    with _named(path):
        contents = read.contents(path)
        _check_types(contents)
        hints = dict(model.hints) | dict(contents.metadata)
        hollow = autoencoders.autoencoder_from(_root_names(_hollow(contents, _taken(contents, only_vae=True, ema=ema))), hints)
        if (hollow.config.latent, hollow.config.downscale) != (model.latent.channels, model.latent.downscale):
            raise CheckpointError(f"Its latents have {hollow.config.latent} channels of {hollow.config.downscale} pixels, and the model's "
                                  f"{model.latent.channels} of {model.latent.downscale}; choose a VAE made for {model.family.name}.")
        scale = model.latent.scale if isinstance(model.latent.scale, float) else 1.0
        vae = autoencoders.autoencoder_from(_vae_weights(path, model.dtype, model.layers, ema), hints, scale=scale)
        _lay([vae], model.layers)
        return _moved(vae, model.device)


def check_values(path: str | os.PathLike[str], vae_path: str | os.PathLike[str] | None = None, *, ema: bool = False) -> None:
    """Read every value once without keeping it: for machines that cannot hold two models. Raises CheckpointError."""
    for file, is_vae in ((path, False), *(((vae_path, True),) if vae_path else ())):
        with _named(Path(file)):
            taken = _taken(read.contents(file), without_vae=not is_vae and vae_path is not None, only_vae=is_vae, ema=ema)
            read.weights(file, taken.__contains__, lambda name, tensor: tensor.new_empty(0))


def move(model: Model, device: torch.device) -> Model:
    """The same model with its networks on `device`. Raises OutOfMemoryError with all of it where it was."""
    before = model.device
    try:
        for network in networks(model):
            _moved(network, device)
    except OutOfMemoryError:
        for network in networks(model):
            network.to(before)
        raise
    model.device, model.apart = device, False
    return model


def set_apart(model: Model, device: torch.device) -> Model:
    """The same model with its networks in main memory, each to be on `device` only while it works: where all do not fit at once."""
    for network in networks(model):
        network.to("cpu")
    model.device, model.apart = device, True
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
        return network.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError("The graphics card has no room for this model; close other programs or use --cpu.") from error


def _taken(contents: Contents, *, without_vae: bool = False, only_vae: bool = False, ema: bool = False) -> dict[str, str]:
    """Name in the file -> name in the model, for what of the file a model is made of.

    only_vae: the VAE's, wherever in the file it lies. Raises CheckpointError where the averages of a U-Net are wanted and are not there.
    """
    away = NOT_WEIGHTS + (OWN_VAE if without_vae else ())
    prefix = _prefix(contents.slots) if only_vae else ""
    names = [name for name in contents.slots if name.startswith(prefix) and not name.startswith(away) and not name.endswith(NOT_LAYERS)]
    taken = {name: name for name in names}
    return _averaged(contents, taken, needed=not only_vae) if ema else taken


def _averages(path: Path, contents: Contents) -> bool:
    """Whether averaged weights are drawn with when nobody says it: as it stands beside the file, else as the family wants it.

    Raises CheckpointError for a file of no family.
    """
    said = str(sidecars.json_hints(path).get("easel.ema", "")).lower()
    if said in ("true", "false"):
        return said == "true"
    return family_of(contents.header).averaged and sum(name.startswith("model_ema.") for name in contents.slots) > MANY


def _averaged(contents: Contents, names: dict[str, str], needed: bool) -> dict[str, str]:
    """The same with the averages of the U-Net, or in a VAE's file of the VAE, in place of its own weights."""
    own = [name for name in names if name.startswith(UNET) or not needed]
    shadows = {shadow_of(name): name for name in own}
    found = {shadow: name for shadow, name in shadows.items() if shadow in contents.slots}
    if len(found) <= MANY:
        if needed:
            raise CheckpointError("It holds no averaged (EMA) weights; choose its ordinary ones.")
        return names
    if len(shadows) < len(own):
        raise CheckpointError("Two of its tensors share the name of one average, so that its EMA weights cannot be told apart; "
                              "choose its ordinary ones.")
    replaced = set(found.values())
    return {name: plain for name, plain in names.items() if plain not in replaced} | found


def _weights(path: Path, contents: Contents, taken: Mapping[str, str], dtype: torch.dtype, kind: str) -> dict[str, Tensor]:
    """What is taken of a file, in the wanted type, by the model's names."""
    scales = read.weights(path, lambda name: name.endswith(SCALE)) if any(name.endswith(SCALE) for name in contents.slots) else NO_SCALES
    found = read.weights(path, taken.__contains__, _cast(dtype, kind, scales))
    return {taken[name]: tensor for name, tensor in found.items()}


def _cast(dtype: torch.dtype, kind: str, scales: Mapping[str, Tensor] = NO_SCALES) -> Callable[[str, Tensor], Tensor]:
    """Real numbers in the wanted type, and convolutions' weights in the order in which they will run, so that no network copies them
    again; those that will be packed are widened only then. Tables of the schedule stay as the file has them, since their type tells how
    far to trust them. scales: what a layer's weights are multiplied by, in float32, by the name of its scale."""
    slab, soon = read.Slab(), read.Slab()                   # soon: what the packing will take the place of

    def change(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or name in read.SCHEDULE:
            return tensor
        scale = scales.get(name.removesuffix(".weight") + SCALE)
        if scale is not None:
            tensor = _scaled(tensor, scale, name)
        if kind == "packed" and tensor.dim() == 4:
            return soon.take(tensor.nbytes).view(tensor.dtype).view(tensor.shape).copy_(tensor)
        place = slab.take(tensor.numel() * dtype.itemsize).view(dtype)
        if kind == "channels_last" and tensor.dim() == 4:
            out, channels, height, width = tensor.shape
            return place.view(out, height, width, channels).permute(0, 3, 1, 2).copy_(tensor)
        return place.view(tensor.shape).copy_(tensor)

    return change


def _scaled(tensor: Tensor, scale: Tensor, name: str) -> Tensor:
    """Weights times their scale, one number or one for each output, in float32. Raises CheckpointError for a scale of another form."""
    if scale.numel() not in (1, len(tensor) if tensor.dim() else 1) or not scale.is_floating_point():
        raise CheckpointError(f"The scale of the 8-bit weights {name[:100]} has the shape {list(scale.shape)}; the file is damaged.")
    return tensor.float().mul_(scale.float().reshape(-1, *(1,) * (tensor.dim() - 1)) if scale.numel() > 1 else scale.float().reshape(()))


def _vae_weights(path: Path, dtype: torch.dtype, kind: str, ema: bool) -> dict[str, Tensor]:
    """The VAE in a file, whether it lies alone there or inside a checkpoint; names without prefix."""
    with _named(path):
        contents = read.contents(path)
        return _root_names(_weights(path, contents, _taken(contents, only_vae=True, ema=ema), dtype, kind))


def _prefix(names: Mapping[str, object]) -> str:
    return next((prefix for prefix in OWN_VAE if any(name.startswith(prefix) for name in names)), "")


def _root_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = _prefix(tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _hollow(contents: Contents, taken: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors with shape and type but no memory, by the model's names; without the schedule, whose values would be looked at."""
    return {plain: torch.empty(contents.slots[name].shape, dtype=getattr(torch, contents.slots[name].dtype), device="meta")
            for name, plain in taken.items() if name not in read.SCHEDULE}


def _check_types(contents: Contents) -> None:
    packed = next((name for name in contents.slots if name.endswith(UNKNOWN) or ".quant_state." in name), None)
    if packed:
        raise CheckpointError(f"Its weights are packed in a way that Easel does not read ({packed[:100]}); choose a 16-bit version.")


def _hints(path: Path, metadata: Mapping[str, str], prediction: str, ema: bool) -> dict[str, str]:
    """What stands beside the tensors, each before the next: the user's choice, NAME.json, the file's metadata, NAME.yaml."""
    hints = sidecars.yaml_hints(path) | dict(metadata) | sidecars.json_hints(path) | {"prediction": prediction}
    return hints | {"easel.ema": "true"} if ema else hints


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
