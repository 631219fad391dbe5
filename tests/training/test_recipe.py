"""A recipe says what is wrong with it before anything is computed."""
import pytest

from modules.core.errors import NotFoundError, SettingsError
from modules.training.recipe import Recipe

WHOLE = """
kind = "diffusion"
seed = 7
[data]
folder = "pictures"
size = 256
[model]
vae = "vae.safetensors"
[unet]
channels = 96
multiply = [1, 2, 4]
depths = [0, 1, 1]
[training]
steps = 10
lr = 1
[samples]
prompts = ["a red house", ""]
"""


def test_a_recipe_is_read_as_it_was_written(tmp_path):
    (tmp_path / "r.toml").write_text(WHOLE)
    found = Recipe.read(tmp_path / "r.toml")
    assert (found.seed, found.data.size, found.unet.multiply, found.training.lr) == (7, 256, (1, 2, 4), 1.0)
    assert found.samples.prompts == ("a red house", "") and found.path("pictures") == tmp_path / "pictures"
    assert found.objective.caption_dropout == 0.1 and found.ema.decay == 0.9999


@pytest.mark.parametrize("change, said", [
    ("colour = 1", "no 'colour'"),
    ("sede = 1", "did you mean seed"),
    ("[traning]\nsteps = 1", "did you mean training"),
    ("[training]\nstep = 1", r"\[training\].*did you mean steps"),
    ("[training]\nsteps = 0", "training.steps is 0; it must be 1 or more"),
    ("[training]\nsteps = 1.5", "whole number"),
    ("[training]\nsteps = true", "whole number"),
    ("[training]\nlr = nan", "training.lr is nan"),
    ("[training]\nlr = \"fast\"", "a number"),
    ("[training]\nbetas = [0.9]", "two numbers"),
    ("[training]\ndecay = \"linear\"", "one of 'constant', 'cosine'"),
    ("[data]\nflip = 1", "true or false"),
    ("[data]\nfolder = 3", "a text in quotes"),
    ("[data]\ncrop = 12", "data.crop"),
    ("[unet]\nmultiply = []", "a list like"),
    ("[unet]\nmultiply = [1, \"2\"]", r"unet.multiply\[1\]"),
    ("[unet]\nmultiply = [1, 2]", "one depth for each"),
    ("[unet]\nchannels = 100", "norm_groups"),
    ("[objective]\nprediction = \"x0\"", "one of 'eps', 'v'"),
    ("[objective]\nzero_terminal_snr = true", "prediction"),
    ("[objective]\nfirst = 0.5", "objective.first"),
    ("[objective]\nconditioning = \"hybrid\"", "concat_channels"),
    ("[vae_objective]\nperceptual = 1.0", "perceptual_weights"),
    ("[model]\ntitle = \"x\"", "needs a VAE"),
    ("kind = \"lora\"", "one of 'diffusion', 'vae'"),
    ("training = 3", "section"),
    ("home = \"x\"", "no 'home'"),
    ("= 3", "not valid TOML"),
])
def test_a_wrong_recipe_is_named_with_its_key(tmp_path, change, said):
    given = "" if change.startswith(("[model]", "kind")) else "model.vae = \"x\"\n"
    (tmp_path / "r.toml").write_text((given + change) if change.startswith("[") else change + "\n" + given)
    with pytest.raises(SettingsError, match=said):
        Recipe.read(tmp_path / "r.toml")


def test_bytes_that_are_no_text_and_a_missing_file_are_sentences(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="TOML"):
        Recipe.read(tmp_path / "r.toml")
    with pytest.raises(NotFoundError, match=r"none\.toml"):
        Recipe.read(tmp_path / "none.toml")
