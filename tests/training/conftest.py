"""One thread, and a small VAE that has learned the four squares."""
import pytest
import torch

from modules.training.recipe import Recipe
from modules.training.train import train
from tests.training.squares import Squares, Stopping

VAE = {"kind": "vae", "data": {"size": 16}, "model": {"norm_groups": 4, "title": "vae", "dtype": "float32"},
       "vae": {"channels": 16, "multiply": [1, 1]}, "training": {"batch": 4, "lr": 2e-3}, "ema": {"decay": 0.0}}
UNET = {"data": {"size": 16}, "model": {"vae": "vae.safetensors", "norm_groups": 4, "dtype": "float32"},
        "unet": {"channels": 16, "multiply": [1, 2], "depths": [0, 1], "res_blocks": 1, "heads": 4}, "text": {"width": 16, "layers": 1},
        "training": {"batch": 4, "lr": 2e-3}, "ema": {"decay": 0.9}}


def merged(base: dict, **sections) -> dict:
    """The recipe with some keys of some sections changed."""
    return {**base, **{name: {**base.get(name, {}), **value} if isinstance(value, dict) else value for name, value in sections.items()}}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def home(tmp_path_factory, one_thread):
    """A folder with `vae.safetensors` in it; recipes are read from there."""
    folder = tmp_path_factory.mktemp("home")
    train(Recipe.of(merged(VAE, training={"steps": 300, "lr": 4e-3, "decay": "cosine"}), home=folder), folder=folder, progress=Stopping(), data=Squares())
    return folder


@pytest.fixture(scope="session")
def recipes(home):
    """(kind, **changed sections) -> a recipe for the squares."""
    return lambda kind, **sections: Recipe.of(merged(VAE if kind == "vae" else UNET, **sections), home=home)
