"""Four pictures, each with one word: the whole road from pixels to a checkpoint that draws them again."""
import json

import numpy as np
import pytest
import torch

from modules.checkpoints import load, read
from modules.training import samples, tensors
from modules.training.train import train
from tests.training.squares import NAMES, Squares, Stopping


@pytest.fixture(scope="module")
def learned(recipes, tmp_path_factory):
    """(the checkpoint, the pictures of the four words as (4, H, W, 3) float32, the progress that watched)."""
    recipe = recipes("diffusion", training={"steps": 200, "batch": 8, "lr": 5e-3, "sample_every": 200},
                     unet={"depths": [1, 1], "heads": 2}, text={"width": 32}, objective={"caption_dropout": 0.0, "prediction": "v"})
    seen, progress = [], Stopping()

    def sheet(task, step):
        seen.extend(samples.pictures(task, NAMES, seed=0, steps=20, cfg_scale=1.0))
        return samples.sheet(task)

    path = train(recipe, folder=tmp_path_factory.mktemp("overfit"), progress=progress, data=Squares(), sheet=sheet)
    return path, np.stack([np.asarray(picture, np.float32) for picture in seen]), progress


def test_each_word_draws_its_own_picture(learned):
    source = Squares()
    wanted = np.stack([((source[n][0].permute(1, 2, 0).numpy() + 1) * 127.5) for n in range(4)])
    apart = np.abs(learned[1][:, None] - wanted[None]).mean((2, 3, 4))
    assert apart.argmin(1).tolist() == [0, 1, 2, 3]
    assert apart.diagonal().max() < 20                      # of 255; the four are 21 and more from each other


def test_the_loss_falls_by_a_factor(learned):
    losses = tensors.read(learned[0].parent / "state.safetensors")[0]["history"][:, 2]
    assert len(losses) == 200 and losses[-25:].mean() < losses[:5].mean() / 3


def test_the_run_leaves_its_curve_and_its_samples_as_files(learned):
    names = {str(file.relative_to(learned[0].parent)) for file in learned[0].parent.rglob("*.png")}
    assert names == {"loss.png", "samples/0000200.png"} and learned[2].shown == 1


def test_the_file_says_what_shapes_cannot(learned):
    said = read.metadata(learned[0])
    assert said["modelspec.architecture"] == "stable-diffusion-v1" and said["modelspec.title"] == "trained"
    assert said["modelspec.resolution"] == "16x16" and said["modelspec.prediction_type"] == "v" and said["ss_steps"] == "200"
    assert json.dumps(said)


def test_the_file_is_loaded_like_any_checkpoint_and_draws_the_same(learned):
    model = load.load(learned[0], device="cpu", dtype=torch.float32)
    assert (model.family.name, model.prediction.kind, model.unet.config.heads, model.vae.config.groups) == ("SD1", "v", 2, 4)
    scale = read.weights(learned[0], lambda name: name == "scale_factor")["scale_factor"]
    assert scale.dim() == 0 and 0.05 < float(scale) < 20
