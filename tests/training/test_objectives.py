"""Each loss and each weight against its closed form."""
import math

import pytest
import torch

from modules.training import objectives
from modules.training.schedule import at, register_schedule

SNR = torch.tensor([0.5, 5.0, 20.0, 5000.0])


@pytest.fixture(scope="module")
def tables():
    return register_schedule(betas=torch.tensor([0.1, 0.2, 0.5]))


def test_what_is_asked_is_noise_picture_or_velocity(tables):
    x0, noise, t = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), torch.tensor([2])
    assert objectives.target("eps", tables, x0, noise, t).item() == 3
    assert objectives.target("x0", tables, x0, noise, t).item() == 2
    assert objectives.target("v", tables, x0, noise, t).item() == pytest.approx(0.6 * 3 - 0.8 * 2)        # alpha 0.36


@pytest.mark.parametrize("kind, expected", [("l1", 2.0), ("l2", 5.0), ("huber", 0.2 * ((math.sqrt(1.01) + math.sqrt(9.01)) / 2 - 0.1))])
def test_a_distance_is_one_mean_for_each_row(kind, expected):
    output = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]])
    found = objectives.distance(output, torch.zeros_like(output), kind)
    assert found.tolist() == pytest.approx([expected, 0.0], abs=1e-7)


def test_a_distance_of_half_precision_outputs_is_taken_in_float32():
    assert objectives.distance(torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16), torch.zeros(1, 1, 1, 1)).item() == 90000.0


@pytest.mark.parametrize("kind, expected", [
    ("x0", [0.5, 5, 5, 5]), ("eps", [1, 1, 5 / 20, 5 / 5000]), ("v", [0.5 / 1.5, 5 / 6, 5 / 21, 5 / 5001])])
def test_min_snr_is_its_table(kind, expected):
    assert objectives.min_snr_weight(kind, SNR, 5.0).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind, expected", [
    ("eps", [0.5 ** -0.5, 5 ** -0.5, 20 ** -0.5, 1000 ** -0.5]), ("v", [1 / 1.5, 1 / 6, 1 / 21, 1 / 1001])])
def test_debiased_is_its_table(kind, expected):
    assert objectives.debiased_weight(kind, SNR).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weigh", [objectives.min_snr_weight, objectives.debiased_weight])
def test_one_mistake_counts_alike_whatever_the_network_predicts(weigh):
    """The same wrong clean latent, seen as an error of eps, x0 and v, costs the same below the clamps."""
    tables, t = register_schedule(), torch.tensor([100, 400, 800])
    generator = torch.Generator().manual_seed(0)
    x0, noise, guess = (torch.randn(3, 4, 4, 4, generator=generator) for _ in range(3))
    root, rest = at(tables.sqrt_alphas_cumprod, t, x0), at(tables.sqrt_one_minus_alphas_cumprod, t, x0)
    x = root * x0 + rest * noise
    as_noise = (x - root * guess) / rest
    outputs = {"x0": guess, "eps": as_noise, "v": root * as_noise - rest * guess}
    costs = {kind: weigh(kind, tables.snr[t]) * objectives.distance(output, objectives.target(kind, tables, x0, noise, t))
             for kind, output in outputs.items()}
    torch.testing.assert_close(costs["eps"], costs["x0"], rtol=1e-3, atol=1e-5)
    if weigh is objectives.min_snr_weight:                  # the published debiased weight of v is another one
        torch.testing.assert_close(costs["v"], costs["x0"], rtol=1e-3, atol=1e-5)


def test_the_whole_loss_is_the_plain_mean_unless_asked_otherwise(tables):
    each, t = torch.tensor([1.0, 3.0]), torch.tensor([1, 2])
    assert objectives.total(each, t, tables).item() == 2
    assert objectives.total(each, t, tables, weight=torch.tensor([2.0, 0.0])).item() == 1
    logvar = torch.tensor([0.0, math.log(2.0), math.log(3.0)])
    expected = (1 / 2 + math.log(2) + 3 / 3 + math.log(3)) / 2
    assert objectives.total(each, t, tables, logvar=logvar).item() == pytest.approx(expected)
    bound = tables.lvlb_weights
    assert objectives.total(each, t, tables, simple=0.5, elbo=2.0).item() == pytest.approx(
        0.5 * 2 + 2 * (float(bound[1]) * 1 + float(bound[2]) * 3) / 2)


def test_offset_noise_moves_a_whole_channel_by_its_draw():
    offsets = torch.tensor([[1.0, -2.0]])[:, :, None, None]
    found = objectives.offset_noise(torch.zeros(1, 2, 3, 3), offsets, 0.1)
    torch.testing.assert_close(found, torch.tensor([0.1, -0.2])[None, :, None, None].expand(1, 2, 3, 3))


def test_captions_go_where_the_draw_lies_below_p():
    draws = torch.tensor([0.0, 0.09, 0.1, 0.9])
    assert objectives.without_captions("abcd", draws, 0.1) == ["", "", "c", "d"]
    assert objectives.without_captions("abcd", draws, 0.0) == list("abcd")


def test_one_caption_in_ten_is_dropped():
    dropped = objectives.without_captions(["x"] * 100_000, torch.rand(100_000, generator=torch.Generator().manual_seed(0)), 0.1)
    assert dropped.count("") / 100_000 == pytest.approx(0.1, abs=0.004)                                  # 4 standard deviations


def test_a_latent_is_drawn_with_its_own_mean_and_spread():
    mean, logvar = torch.full((200_000,), 3.0), torch.full((200_000,), math.log(0.25))
    drawn = objectives.posterior_sample(mean, logvar, torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.006) and drawn.std().item() == pytest.approx(0.5, abs=0.004)


def test_the_measured_scale_gives_latents_a_spread_of_one():
    latents = 5.5 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) + 3
    assert (latents * objectives.scale_by_std(latents)).std().item() == pytest.approx(1.0, abs=1e-5)
