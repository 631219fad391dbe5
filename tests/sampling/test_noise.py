"""Noise to the published vectors, one picture at a time, and never from torch's global generator."""
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modules.core.errors import RequestError
from modules.sampling.noise import Brownian, BrownianPath, Draws, Generator, pasted, philox, philox_words, slerp

NV = {
    (0, 0): "-0.9246624 -0.4253440 -2.6438458 0.1451839 -0.1208665 -0.5797257 -0.6228513 -0.3283871",
    (0, 1): "0.1808259 -0.5522627 0.9238134 -0.7349704 1.3799946 0.8676307 0.1296559 -0.9406400",
    (1, 0): "-0.2962778 2.6764481 -0.1408464 -0.8440951 0.2905384 -0.2838308 -1.4534556 2.3736813",
    (42, 0): "0.1940189 2.1613739 -0.1720510 0.8490600 -1.9243993 0.6529853 -0.6494411 -0.8175246",
    (42, 1): "0.1391375 -0.1082162 -0.7174222 0.7566487 0.3714882 -1.0049413 0.0082947 0.3276579",
    (4294967293, 0): "-1.1140143 -0.8079632 -1.2942228 0.1419486 1.7838765 1.0010240 -0.1352184 0.3956901",
    (2**32, 0): "-0.0174249 0.4864572 0.7840469 -0.1919435 0.0077539 -0.9396846 -0.7347023 0.2823483",
}
CPU = {
    (0, 0): "-1.1258398 -1.1523602 -0.2505786 -0.4338788", (0, 1): "-0.5518361 1.5398073 1.0035588 -0.7947894",
    (42, 0): "1.9269153 1.4872841 0.9007172 -2.1055210",
}
SHAPE = (4, 6, 5)
SEEDS = st.integers(0, 2**64 - 1)


def draws(seeds, subseeds=None, strength=0.0, shape=SHAPE, **settings):
    return Draws(seeds, subseeds or [0] * len(seeds), strength, shape, **settings)


def three(noise: Draws) -> torch.Tensor:
    """The first draw and the two after it, (3, B, C, h, w)."""
    return torch.stack([noise.first(), noise.next(), noise.next()])


@pytest.mark.parametrize("seed, draw", NV)
def test_nv_noise_is_the_published_one(seed, draw):
    np.testing.assert_allclose(philox(seed, draw, 8), np.array(NV[seed, draw].split(), dtype=float), atol=1e-6)


def test_the_words_of_philox_are_the_published_ones():
    assert [int(word[0]) for word in philox_words(0, 0, 1)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("seed, draw", CPU)
def test_cpu_noise_is_torchs_own(seed, draw):
    generator = Generator(seed, "CPU")
    made = [generator.randn((4, 64, 64)) for _ in range(draw + 1)][-1]
    np.testing.assert_allclose(made.flatten()[:4], np.array(CPU[seed, draw].split(), dtype=float), atol=1e-6)


def test_a_large_draw_begins_as_a_small_one_and_is_normal():
    big = philox(9, 0, 200_000)
    assert np.array_equal(big[:50], philox(9, 0, 50)) and big.dtype == np.float32
    assert abs(big.mean()) < 0.01 and abs(big.std() - 1) < 0.01


def test_gpu_noise_is_read_as_nv_and_another_source_is_refused():
    assert torch.equal(draws([5], source="GPU").first(), draws([5]).first())
    with pytest.raises(RequestError, match="“TPU”"):
        draws([5], source="TPU")


@hypothesis_settings(max_examples=40, deadline=None)
@given(seeds=st.lists(SEEDS, min_size=1, max_size=4), subseed=SEEDS, strength=st.sampled_from([0.0, 0.3, 1.0]),
       source=st.sampled_from(["NV", "CPU"]), ensd=st.sampled_from([0, 31337, -5]), resize=st.sampled_from([(0, 0), (32, 64), (80, 24)]))
def test_noise_is_the_same_to_the_bit_alone_and_in_any_batch(seeds, subseed, strength, source, ensd, resize):
    settings = {"source": source, "ensd": ensd, "resize_from": resize}
    subseeds = [(subseed + k) % 2**64 for k in range(len(seeds))]
    together = three(draws(seeds, subseeds, strength, **settings))
    for k, seed in enumerate(seeds):
        assert torch.equal(together[:, k], three(draws([seed], [subseeds[k]], strength, **settings))[:, 0])


@pytest.mark.parametrize("source", ["NV", "CPU"])
def test_torchs_global_generator_is_left_alone(source):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    noise = draws([1, 2], [3, 4], 0.5, source=source, ensd=9)
    noise.first()
    noise.next()
    Brownian([1, 2], SHAPE, 0.03, 14.6, source)(torch.tensor(5.0), torch.tensor(2.0))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_draw_is_another_one_and_a_hires_pass_begins_anew():
    first, second, third = three(draws([7]))
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert torch.equal(draws([7], shape=(4, 12, 10)).first()[0].flatten(), torch.from_numpy(philox(7, 0, 480)))


def test_a_variation_of_strength_0_is_the_base_and_of_strength_1_the_other():
    base, other = Generator(1).randn((4, 64, 64)), Generator(2).randn((4, 64, 64))
    assert torch.allclose(slerp(0.0, base, other), base, atol=1e-6)
    assert torch.allclose(slerp(1.0, base, other), other, atol=1e-6)
    half = slerp(0.5, base, other)
    assert abs(float(half.std()) - 1) < 0.05 and not torch.allclose(half, (base + other) / 2, atol=0.1)


def test_a_variation_turns_every_column_of_cells_by_its_own_angle():
    base, other = Generator(1).randn((1, 3, 2)), Generator(2).randn((1, 3, 2))
    for column in range(2):
        a, b = base[0, :, column].double().numpy(), other[0, :, column].double().numpy()
        angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        expected = (np.sin(0.75 * angle) * a + np.sin(0.25 * angle) * b) / np.sin(angle)
        np.testing.assert_allclose(slerp(0.25, base, other)[0, :, column], expected, atol=1e-5)


def test_parallel_noise_is_mixed_with_the_weights_exchanged():
    base = Generator(1).randn((4, 8, 8))
    assert torch.allclose(slerp(0.25, base, base * 2), base * 0.25 + base * 2 * 0.75)


@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 1, 9), (4, 2, 1)])
def test_noise_of_a_cell_or_two_stays_finite_in_a_variation(shape):
    assert bool(draws([1], [2], 0.5, shape).first().isfinite().all())


def test_a_variation_changes_the_first_draw_only():
    plain, varied = three(draws([5])), three(draws([5], [9], 0.4))
    assert not torch.equal(plain[0], varied[0]) and torch.equal(plain[1:], varied[1:])


def test_a_resized_seed_keeps_the_middle_of_the_smaller_picture():
    small, big = draws([3], shape=(4, 64, 64)).first(), draws([3], shape=(4, 96, 96), resize_from=(512, 512)).first()
    assert torch.equal(big[:, :, 16:80, 16:80], small)
    assert torch.equal(big[:, :, :16], draws([3], shape=(4, 96, 96)).first()[:, :, :16])


def test_a_resized_seed_takes_width_and_height_each_for_itself():
    wide = draws([3], shape=(4, 8, 32), resize_from=(128, 192)).first()                 # 16 cells wide, 24 high, cut to 8
    assert torch.equal(wide[:, :, :, 8:24], draws([3], shape=(4, 24, 16)).first()[:, :, 8:16])


def test_a_variation_of_a_resized_seed_is_made_at_the_smaller_size():
    big = draws([3], [4], 0.3, shape=(4, 20, 20), resize_from=(96, 96)).first()
    assert torch.equal(big[:, :, 4:16, 4:16], draws([3], [4], 0.3, shape=(4, 12, 12)).first())


def test_pasting_odd_sizes_keeps_inside_both():
    small, big = torch.ones(1, 5, 4), torch.zeros(1, 2, 7)
    out = pasted(small, big)
    assert out.shape == big.shape and out.sum() > 0 and big.sum() == 0


@pytest.mark.parametrize("source", ["NV", "CPU"])
def test_a_seed_delta_starts_the_later_draws_anew_at_another_seed(source):
    first, second, third = three(draws([5, 6], source=source, ensd=31337))
    other = draws([5 + 31337, 6 + 31337], source=source)
    assert torch.equal(first, draws([5, 6], source=source).first())
    assert torch.equal(second, other.first()) and torch.equal(third, other.next())


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")      # torchsde tells of its own rounding
@hypothesis_settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), levels=st.lists(st.floats(0.03125, 14.5, width=32), min_size=3, max_size=8, unique=True))
def test_a_brownian_path_is_that_of_torchsde(seed, levels):
    torchsde = pytest.importorskip("torchsde")
    levels = sorted(levels, reverse=True)
    ours = BrownianPath(seed, (2, 3, 4), levels[-1], levels[0], "CPU")
    theirs = torchsde.BrownianTree(levels[-1], torch.zeros(2, 3, 4), levels[0], entropy=seed)
    for high, low in pairwise(levels):
        if round(high, 6) != round(low, 6):
            assert torch.allclose(ours.between(low, high), theirs(low, high), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("source", ["NV", "CPU"])
def test_a_brownian_path_answers_the_same_in_any_order_and_adds_up(source):
    forward, backward = (BrownianPath(11, (1, 4, 4), 0.03, 14.6, source) for _ in range(2))
    marks = [0.03, 0.2, 0.9, 3.3, 9.1, 14.6]
    parts = [forward.between(a, b) for a, b in pairwise(marks)]
    again = [backward.between(a, b) for a, b in reversed(list(pairwise(marks)))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert torch.allclose(sum(parts), forward.between(0.03, 14.6), atol=1e-5)


def test_a_brownian_path_forgets_and_remakes_what_it_no_longer_holds():
    path = BrownianPath(11, (1, 2, 2), 0.03, 14.6)
    first = path.between(0.5, 0.7)
    for k in range(60):
        path.between(1 + k / 10, 1.05 + k / 10)
    assert len(path._halved) <= path.REMEMBERED and torch.equal(path.between(0.5, 0.7), first)


def test_brownian_noise_has_unit_variance_and_falls_with_the_path():
    noise = Brownian([1], (4, 64, 64), 0.03, 14.6)(torch.tensor(9.0), torch.tensor(4.0))
    assert noise.shape == (1, 4, 64, 64) and abs(float(noise.std()) - 1) < 0.03
    rise = BrownianPath(1, (4, 64, 64), 0.03, 14.6).between(4.0, 9.0)
    assert torch.allclose(noise[0], -rise / 5**0.5, atol=1e-6)


@pytest.mark.parametrize("source", ["NV", "CPU"])
def test_brownian_noise_is_the_same_to_the_bit_alone_and_in_any_batch(source):
    high, low = torch.tensor(5.0), torch.tensor(2.5)
    together = Brownian([4, 5, 2**63], SHAPE, 0.03, 14.6, source)(high, low)
    for k, seed in enumerate([4, 5, 2**63]):
        assert torch.equal(together[k], Brownian([seed], SHAPE, 0.03, 14.6, source)(high, low)[0])
