"""Miniature models on a shelf of their own; made once, copied for each test."""
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from modules.checkpoints.residency import Residency
from modules.checkpoints.shelf import Shelf
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from tests import tiny


@pytest.fixture(scope="session")
def originals():
    """a, b: two checkpoints; v: a VAE alone; full: a VAE under a checkpoint's prefix. Anybody may read them."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    small = {"mult": (1, 1, 1, 1), "text_layers": 2}
    tiny.save_sd1(folder / "a.safetensors", seed=1, metadata={"modelspec.title": "A"}, **small)
    tiny.save_sd1(folder / "b.safetensors", seed=2, **small)
    tiny.save_vae(folder / "v.safetensors", seed=3, mult=small["mult"])
    tiny.save_vae(folder / "full.safetensors", seed=4, mult=small["mult"], prefix="first_stage_model.")
    for path in folder.iterdir():
        path.chmod(0o644)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def paths(tmp_path, originals) -> Paths:
    """A house with a, b and the VAE v in the places where users put them."""
    found = Paths.of(tmp_path / "house")
    found.make()
    for name in ("a", "b"):
        shutil.copy(originals / f"{name}.safetensors", found.checkpoints[0])
    shutil.copy(originals / "v.safetensors", found.vae[0])
    return found


@pytest.fixture
def shelf(paths) -> Shelf:
    return Shelf(paths, Hashes(paths.hashes_file))


@pytest.fixture
def residency(shelf) -> Residency:
    return Residency(shelf, "cpu", torch.float32)


def picture(model) -> torch.Tensor:
    """What tells one model from another: its text tower, U-Net and VAE after each other, on fixed inputs."""
    generator = torch.Generator().manual_seed(7)
    with torch.inference_mode():
        text = model.text[0].encode(torch.arange(77)[None], 1)[0]
        latent = model.unet(torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([500.0]), text)
        return model.vae.decode(latent)


@pytest.fixture
def unprivileged():
    """A folder in which this process has no more rights than anybody; root puts its own aside for the test."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)                                   # nobody
    yield folder
    if root:
        os.seteuid(0)
    shutil.rmtree(folder)
