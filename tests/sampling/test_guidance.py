"""Guidance: the formula, which rows go to the network together, and that neighbours do not matter."""
import pytest
import torch

from modules.families.parts import unet_from
from modules.sampling.conditioning import Conditioning
from modules.sampling.denoise import network_rows
from modules.sampling.guidance import cfg, skips
from modules.sampling.prediction import Prediction, scaled_linear_alphas
from tests import tiny

SIGMA = torch.tensor(2.0)


def text(value, tokens=77, width=64):
    """A prompt of one constant, or of noise of its own where the network is real."""
    return Conditioning(cross=torch.full((1, tokens, width), float(value)))


def noise_text(seed, tokens=77):
    return Conditioning(cross=torch.randn(1, tokens, 64, generator=torch.Generator().manual_seed(seed)))


class Answers:
    """A row's clean latent is x plus the constant of its text; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, rows):
        self.asked.append(rows)
        return rows.x + rows.conditioning.cross.mean(dim=(1, 2))[:, None, None, None]


def guided(told, scale, pictures=1, **settings):
    answers = Answers()
    x = torch.arange(pictures * 4.0).reshape(pictures, 1, 2, 2)
    return cfg(answers, lambda call: told, scale, **settings)(x, SIGMA), answers.asked, x


def test_the_difference_that_the_prompt_makes_is_exaggerated():
    denoised, asked, x = guided([([(1.0, text(3))], text(1))], 7.5)
    assert torch.allclose(denoised.value, x + 1 + 7.5 * (3 - 1))
    assert denoised.uncond is not None and torch.allclose(denoised.uncond, x + 1)
    assert len(asked) == 1 and asked[0].which == ("cond", "uncond")


def test_parts_joined_by_and_are_added_each_with_its_weight():
    denoised, asked, x = guided([([(1.0, text(3)), (-0.5, text(5))], text(1))], 4.0)
    assert torch.allclose(denoised.value, x + 1 + 4.0 * (1.0 * (3 - 1) - 0.5 * (5 - 1)))
    assert asked[0].part == (0, 1, 0) and asked[0].weights == (1.0, -0.5, 1.0)


def test_scale_1_asks_no_negative_prompt_and_gives_the_prompts_own_answer():
    denoised, asked, x = guided([([(1.0, text(3))], text(1))], 1.0)
    assert torch.equal(denoised.value, x + 3) and denoised.uncond is None
    assert [rows.which for rows in asked] == [("cond",)]


@pytest.mark.parametrize("weights", [(0.5, 0.5), (2.0, -1.0)])
def test_weights_that_leave_the_negative_prompt_no_share_leave_it_out(weights):
    denoised, asked, x = guided([([(weights[0], text(3)), (weights[1], text(5))], text(1))], 1.0)
    assert torch.allclose(denoised.value, x + weights[0] * 3 + weights[1] * 5) and "uncond" not in asked[0].which


def test_scale_1_with_weights_that_do_not_add_up_needs_the_negative_prompt():
    denoised, _, x = guided([([(0.5, text(3))], text(1))], 1.0)
    assert torch.allclose(denoised.value, x + 1 + 0.5 * (3 - 1))


def test_scale_0_is_the_negative_prompt_alone():
    denoised, _, x = guided([([(1.0, text(3))], text(1))], 0.0)
    assert torch.allclose(denoised.value, x + 1)


def test_all_rows_of_all_pictures_go_through_the_network_together():
    told = [([(1.0, text(2))], text(0)), ([(1.0, text(4)), (0.3, text(5))], text(1)), ([(1.0, text(6))], text(0))]
    denoised, asked, x = guided(told, 2.0, pictures=3)
    assert [(rows.picture, rows.which) for rows in asked] == [((0, 1, 1, 2, 0, 1, 2), ("cond",) * 4 + ("uncond",) * 3)]
    assert torch.allclose(denoised.value[1], x[1] + 1 + 2.0 * ((4 - 1) + 0.3 * (5 - 1)))
    assert all(torch.equal(asked[0].x[row], x[picture]) for row, picture in enumerate(asked[0].picture))


def test_texts_of_different_length_are_asked_separately_with_the_same_answer():
    told = [([(1.0, text(3, 154))], text(1)), ([(1.0, text(2))], text(1, 154))]
    denoised, asked, x = guided(told, 7.0, pictures=2)
    assert [rows.conditioning.cross.shape[1] for rows in asked] == [154, 77]
    assert [rows.picture for rows in asked] == [(0, 1), (1, 0)]
    assert torch.allclose(denoised.value, x + 1 + 7.0 * torch.tensor([2.0, 1.0])[:, None, None, None])


def test_no_more_rows_than_the_limit_go_at_once():
    told = [([(1.0, text(k))], text(0)) for k in range(5)]
    denoised, asked, x = guided(told, 3.0, pictures=5, batch_rows_limit=4)
    assert [len(rows.x) for rows in asked] == [4, 4, 2]
    assert torch.allclose(denoised.value, x + 3.0 * torch.arange(5.0)[:, None, None, None])


def test_each_call_asks_with_the_texts_of_its_number():
    answers, texts = Answers(), [text(1), text(1), text(2)]
    denoise = cfg(answers, lambda call: [([(1.0, texts[call])], texts[0])], 7.0)
    x = torch.zeros(1, 1, 2, 2)
    values = [float(denoise(x, SIGMA).value.mean()) for _ in range(3)]
    assert values == pytest.approx([1, 1, 1 + 7 * (2 - 1)]) and [rows.call for rows in answers.asked] == [0, 1, 2]


@pytest.fixture(scope="module")
def network():
    """A miniature U-Net of the true topology, bound to its prediction."""
    unet = unet_from({f"model.diffusion_model.{name}": tensor for name, tensor in tiny.draw(tiny.unet_shapes()).items()}, {})
    return network_rows(unet.eval(), Prediction("eps", scaled_linear_alphas()))


def ask(network, x, told):
    with torch.no_grad():
        return cfg(network, lambda call: told, 7.0)(x, SIGMA).value


def test_a_picture_does_not_see_its_neighbours_beyond_rounding(network):
    """Convolutions over other numbers of rows differ in their last bits, so: a millionth of the latent's size, times the scale."""
    x = SIGMA * torch.randn(3, 4, 16, 8, generator=torch.Generator().manual_seed(0))
    told = [([(1.0, noise_text(1))], noise_text(9)), ([(1.0, noise_text(2, 154)), (0.5, noise_text(3, 154))], noise_text(9)),
            ([(1.0, noise_text(4))], noise_text(8, 154))]
    together = ask(network, x, told)
    for k in range(3):
        alone = ask(network, x[k:k + 1], told[k:k + 1])
        assert float((together[k] - alone[0]).abs().max()) <= 2e-5 * float(alone.std())
    other = ask(network, x.flip(0), told[::-1]).flip(0)
    assert float((together - other).abs().max()) <= 2e-5 * float(together.std())


def test_what_is_told_matters(network):
    """The bound above would hold of a network that looks at nothing."""
    x = SIGMA * torch.randn(1, 4, 16, 8, generator=torch.Generator().manual_seed(0))
    one, two = (ask(network, x, [([(1.0, noise_text(seed))], noise_text(9))]) for seed in (1, 2))
    assert float((one - two).abs().max()) > 1e-2 * float(one.std())


# ---- three texts: models that edit a picture

def test_an_edit_follows_the_picture_by_one_scale_and_the_words_by_the_other():
    """Brooks et al. 2023, eq. 3: e(0,0) + s_I * (e(I,0) - e(0,0)) + s_T * (e(I,T) - e(I,0))."""
    denoised, asked, x = guided([([(1.0, text(6))], text(3), text(1))], 7.5, image_cfg_scale=1.5)
    assert torch.allclose(denoised.value, x + 1 + 1.5 * (3 - 1) + 7.5 * (6 - 3))
    assert denoised.uncond is not None and torch.allclose(denoised.uncond, x + 3)
    assert [rows.which for rows in asked] == [("cond", "uncond", "blank")]


@pytest.mark.parametrize("image_cfg_scale", [None, 1.0])
def test_an_edit_at_picture_scale_1_asks_two_texts_and_is_plain_guidance(image_cfg_scale):
    denoised, asked, x = guided([([(1.0, text(6))], text(3), text(1))], 7.5, image_cfg_scale=image_cfg_scale)
    plain, _, _ = guided([([(1.0, text(6))], text(3))], 7.5)
    assert torch.equal(denoised.value, plain.value) and asked[0].which == ("cond", "uncond")


def test_an_edit_whose_scales_are_equal_leaves_out_the_text_that_has_no_share():
    denoised, asked, x = guided([([(1.0, text(6))], text(3), text(1))], 1.5, image_cfg_scale=1.5)
    assert torch.allclose(denoised.value, x + 1 + 1.5 * (6 - 1)) and asked[0].which == ("cond", "blank")


@pytest.mark.parametrize("scale, image_scale, told", [
    (7.5, None, ([(1.0, text(6))], text(3))), (7.5, 1.5, ([(1.0, text(6))], text(3), text(1))), (4.0, None, ([(1.0, text(6)), (-0.5, text(2))], text(3))),
    (1.0, None, ([(1.0, text(6))], text(3)))])
def test_the_shares_of_a_pictures_rows_are_1_together_and_say_what_each_counts(scale, image_scale, told):
    denoised, asked, x = guided([told], scale, image_cfg_scale=image_scale)
    values = [float(asked[0].conditioning.cross[row].mean()) for row in range(len(asked[0].shares))]
    assert sum(asked[0].shares) == pytest.approx(1)
    assert torch.allclose(denoised.value, x + sum(share * value for share, value in zip(asked[0].shares, values, strict=True)))


def test_a_second_scale_means_nothing_where_there_is_no_third_text():
    with_scale, asked, _ = guided([([(1.0, text(6))], text(3))], 7.5, image_cfg_scale=1.5)
    assert torch.equal(with_scale.value, guided([([(1.0, text(6))], text(3))], 7.5)[0].value) and len(asked[0].which) == 2


# ---- calls without the negative prompt

def asked_at(skip, sigmas, told=([(1.0, text(3))], text(1)), **settings):
    """Which calls, at these levels, asked the negative prompt, and what came out less x."""
    answers = Answers()
    denoise, x = cfg(answers, lambda call: [told], 7.0, skip=skip, **settings), torch.zeros(1, 1, 2, 2)
    values = [float(denoise(x, torch.tensor(sigma)).value.mean()) for sigma in sigmas]
    return ["uncond" in rows.which for rows in answers.asked], values


def test_below_the_level_every_second_call_goes_at_scale_1_without_the_negative_prompt():
    asked, values = asked_at(skips(below=2.0), [9.0, 5.0, 1.9, 1.5, 1.0, 0.5])
    assert asked == [True, True, True, False, True, False]
    assert values == pytest.approx([15, 15, 15, 3, 15, 3])


def test_below_the_level_all_calls_go_so_where_that_is_asked():
    assert asked_at(skips(below=2.0, every_call=True), [9.0, 2.0, 1.9, 1.5])[0] == [True, True, False, False]


def test_the_first_part_of_the_calls_goes_without_the_negative_prompt():
    assert asked_at(skips(until=0.25, calls=8), [9.0] * 5)[0] == [False, False, False, True, True]


def test_a_picture_being_edited_keeps_its_negative_prompt():
    told = ([(1.0, text(3))], text(1), text(0))
    assert asked_at(skips(below=99.0, every_call=True), [9.0, 2.0], told, image_cfg_scale=1.5)[0] == [True, True]


def test_nothing_is_left_out_unless_asked():
    assert skips() is None and skips(every_call=True) is None


def test_a_sampler_whose_direction_is_that_without_the_prompt_has_it_at_scale_1_too():
    denoised, asked, x = guided([([(1.0, text(3))], text(1))], 1.0, always_uncond=True)
    assert torch.equal(denoised.value, x + 3) and torch.equal(denoised.uncond, x + 1)


def test_cond_and_uncond_in_one_call_or_apart_give_one_picture_within_rounding(network):
    """Matrix products over other numbers of rows sum in another order: at most 2e-5 of the latent's spread at scale 7."""
    x = SIGMA * torch.randn(2, 4, 16, 8, generator=torch.Generator().manual_seed(0))
    told = [([(1.0, noise_text(seed))], noise_text(9)) for seed in (1, 2)]
    together = ask(network, x, told)
    with torch.no_grad():
        apart = cfg(network, lambda call: told, 7.0, batch_rows_limit=1)(x, SIGMA).value
    assert float((together - apart).abs().max()) <= 2e-5 * float(together.std())
