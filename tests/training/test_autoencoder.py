"""The parts of the autoencoder's loss against their closed forms; the networks that judge it."""
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modules.core.errors import CheckpointError
from modules.training import autoencoder
from modules.training.discriminator import VGG_BLOCKS, PatchDiscriminator, Perceptual


def test_the_divergence_is_that_of_two_gaussians():
    mean, logvar = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), math.log(4.0))
    assert autoencoder.kl(mean, logvar).tolist() == pytest.approx([4 * 0.5 * (9 + 4 - 1 - math.log(4))] * 2)
    assert autoencoder.kl(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)).item() == 0


@pytest.mark.parametrize("pixel, each", [("l1", 0.5), ("l2", 0.25)])
def test_the_reconstruction_is_summed_over_a_picture_and_weighed_by_its_variance(pixel, each):
    x = torch.zeros(2, 3, 4, 4)
    zero, logvar = torch.tensor(0.0), torch.tensor(math.log(2.0))
    assert autoencoder.nll(x, x + 0.5, zero, pixel=pixel).item() == pytest.approx(48 * each)
    assert autoencoder.nll(x, x + 0.5, logvar, pixel=pixel).item() == pytest.approx(48 * (each / 2 + math.log(2)))
    alike = torch.tensor([1.0, 3.0])[:, None, None, None]
    assert autoencoder.nll(x, x + 0.5, zero, pixel=pixel, perceptual=alike).item() == pytest.approx(48 * (each + 2))


def test_the_adversary_is_weighed_so_that_both_gradients_are_equally_long():
    last = nn.Parameter(torch.ones(3))
    a, b = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 0.0, 0.5])
    weight = autoencoder.adaptive_weight((a * last).sum(), (b * last).sum(), last)
    assert weight.item() == pytest.approx(5 / (0.5 + 1e-4)) and not weight.requires_grad
    assert autoencoder.adaptive_weight((1e9 * a * last).sum(), (b * last).sum(), last).item() == 1e4


def test_the_hinge_forgets_what_is_already_sure():
    assert autoencoder.hinge(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])).item() == pytest.approx(0.5 * (0.25 + 0.5))


def test_the_patches_are_those_of_the_published_discriminator():
    judge = PatchDiscriminator()
    assert judge(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    shapes = {name: tuple(tensor.shape) for name, tensor in judge.state_dict().items() if name.endswith("weight") and tensor.dim() == 4}
    assert shapes == {"main.0.weight": (64, 3, 4, 4), "main.2.weight": (128, 64, 4, 4), "main.5.weight": (256, 128, 4, 4),
                      "main.8.weight": (512, 256, 4, 4), "main.11.weight": (1, 512, 4, 4)}


@pytest.mark.parametrize("edge", [0, 8])
def test_a_crop_is_a_part_of_its_picture(edge):
    pixels = torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16).float()
    found = autoencoder.cropped(pixels, edge, torch.Generator().manual_seed(0))
    assert found.shape[-1] == (edge or 16)
    for crop, whole in zip(found, pixels, strict=True):
        place = int(crop[0, 0, 0] - whole[0, 0, 0])
        top, left = divmod(place, 16)
        assert torch.equal(crop, whole[:, top:top + crop.shape[1], left:left + crop.shape[2]])


def vgg(tmp_path, *, lines: bool, width: int = 4):
    """A file with the names of VGG16, and random narrow layers."""
    generator, weights, before = torch.Generator().manual_seed(0), {}, 3
    for index in (index for block in VGG_BLOCKS for index in block):
        weights[f"features.{index}.weight"] = 0.3 * torch.randn(width, before, 3, 3, generator=generator)
        weights[f"features.{index}.bias"] = torch.zeros(width)
        before = width
    if lines:
        weights |= {f"lin{block}.model.1.weight": torch.full((1, width, 1, 1), 2.0 / width) for block in range(5)}
    save_file(weights, tmp_path / f"vgg-{lines}.safetensors")
    return tmp_path / f"vgg-{lines}.safetensors"


def test_equal_pictures_are_no_distance_apart_and_others_some(tmp_path):
    eye = Perceptual.of(vgg(tmp_path, lines=False))
    one, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.zeros(2, 3, 32, 32)
    assert eye(one, one).flatten().tolist() == [0.0, 0.0]
    assert eye(one, other).shape == (2, 1, 1, 1) and float(eye(one, other).min()) > 0


def test_the_weights_of_the_channels_count(tmp_path):
    """Lines of 2 / C for each channel are twice the mean."""
    one, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.zeros(2, 3, 32, 32)
    plain, weighed = Perceptual.of(vgg(tmp_path, lines=False)), Perceptual.of(vgg(tmp_path, lines=True))
    torch.testing.assert_close(weighed(one, other), 2 * plain(one, other))


def test_another_file_is_no_judge_of_pictures(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="VGG16"):
        Perceptual.of(tmp_path / "x.safetensors")
