"""The walk from the first latent to the last: calls, doors, stopping, types, and what is refused."""
import math

import pytest
import torch

from modules.core.errors import Cancelled, NanError
from modules.families.parts import unet_from
from modules.sampling import catalogue, schedule
from modules.sampling.conditioning import Conditioning
from modules.sampling.denoise import denoise, first_latent, sampler_arguments, seen_timesteps
from modules.sampling.noise import Brownian, Draws
from modules.sampling.prediction import Prediction, scaled_linear_alphas
from modules.sampling.samplers import Denoised
from tests import tiny

EPS = Prediction("eps", scaled_linear_alphas())
SHAPE = (4, 8, 8)
NAMES = [entry.name for entry in catalogue.SAMPLERS]


@pytest.fixture(scope="module")
def unet():
    return unet_from({f"model.diffusion_model.{name}": tensor for name, tensor in tiny.draw(tiny.unet_shapes()).items()}, {}).eval()


def text(seed):
    return Conditioning(cross=torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(seed)))


TEXTS = [([(1.0, text(1))], text(0)), ([(1.0, text(2))], text(0))]


def picture(unet, name="Euler", seeds=(5,), steps=4, told=None, prediction=EPS, **settings):
    entry = catalogue.sampler(name)
    sigmas = schedule.ladder("Automatic", name, steps, prediction)
    noise = Draws(seeds, seeds, 0.0, SHAPE)
    x = first_latent(noise.first(), sigmas[0], entry)
    used = Brownian(seeds, SHAPE, float(sigmas[sigmas > 0].min()), float(sigmas[0])) if entry.brownian else noise
    told = told or TEXTS[:len(seeds)]
    usual = {"conditioning_at": lambda call: told, "cfg_scale": 5.0, "noise": used}
    return denoise(unet, prediction, x, sigmas, entry, **{**usual, **settings})


class Recording(torch.nn.Module):
    """A network that keeps what it was given."""

    def __init__(self, dtype=torch.float32, output=None):
        super().__init__()
        self.weight, self.seen, self._output = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype)), [], output

    def forward(self, x, timesteps, context, **more):
        self.seen.append((x, timesteps, context, more))
        return self._output(x) if self._output else x[:, :4] * self.weight


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_makes_a_finite_latent_of_a_real_network(unet, name):
    done = picture(unet, name, steps=5)
    assert done.complete and done.latent.shape == (1, *SHAPE) and done.latent.dtype == torch.float32
    assert bool(done.latent.isfinite().all()) and not done.latent.requires_grad


@pytest.mark.parametrize("name", [entry.name for entry in catalogue.SAMPLERS if not entry.alone])
def test_a_picture_is_the_same_alone_and_in_a_batch_within_rounding(unet, name):
    together = picture(unet, name, seeds=(5, 6)).latent
    for k, seed in enumerate((5, 6)):
        alone = picture(unet, name, seeds=(seed,), told=TEXTS[k:k + 1]).latent
        assert float((together[k] - alone[0]).abs().max()) <= 1e-3 * float(alone.std())     # a pixel's step is 1/255 = 4e-3


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_gives_the_same_bits(unet, name):
    assert torch.equal(picture(unet, name).latent, picture(unet, name).latent)


def test_v_and_eps_make_different_pictures_of_one_network(unet):
    assert not torch.allclose(picture(unet).latent, picture(unet, prediction=Prediction("v", scaled_linear_alphas())).latent)


@pytest.mark.parametrize("name, calls", [("Euler", 5), ("Heun", 9), ("DPM++ 2M", 5), ("DDIM", 4)])
def test_the_network_is_called_once_a_call_for_cond_and_uncond_together(name, calls):
    network = Recording()
    picture(network, name, steps=5)
    assert [len(x) for x, *_ in network.seen] == [2] * calls


def test_steps_and_calls_are_counted_from_zero():
    calls, steps = [], []

    def at(call):
        calls.append(call)
        return TEXTS[:1]

    picture(Recording(), "Heun", conditioning_at=at, on_step=lambda i, denoised: steps.append(i))
    assert calls == list(range(7)) and steps == list(range(4))


def test_the_network_is_called_in_the_type_of_its_weights_and_the_state_stays_float32():
    network = Recording(torch.bfloat16)
    done = picture(network)
    x, timesteps, context, _ = network.seen[0]
    assert (x.dtype, timesteps.dtype, context.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert done.latent.dtype == torch.float32 and not torch.equal(done.latent, done.latent.bfloat16().float())


def test_half_precision_rounds_timesteps_as_published_seeds_hold_it_and_the_others_do_not():
    assert seen_timesteps(torch.tensor(700.3), torch.float16).item() == 700.5
    assert seen_timesteps(torch.tensor(700.3), torch.bfloat16).item() == pytest.approx(700.3)
    assert seen_timesteps(torch.tensor(700.3), torch.float32).item() == pytest.approx(700.3)


def test_a_mask_in_the_conditioning_is_joined_to_the_latent_and_a_vector_is_handed_on():
    network = Recording()
    told = Conditioning(cross=torch.zeros(1, 77, 64), concat=torch.ones(1, 5, 8, 8), vector=torch.ones(1, 3))
    picture(network, told=[([(1.0, told)], told)])
    x, _, _, more = network.seen[0]
    assert x.shape == (2, 9, 8, 8) and bool((x[:, 4:] == 1).all()) and more["vector"].shape == (2, 3)


def test_the_two_doors_stand_inside_and_outside_of_guidance():
    order = []

    def inner(name):
        def wrap_model(rows_denoise):
            def asked(rows):
                order.append((name, rows.which, rows.picture))
                return rows_denoise(rows)
            return asked
        return wrap_model

    def outer(name):
        def wrap(denoise):
            def asked(x, sigma):
                order.append((name, len(x)))
                denoised = denoise(x, sigma)
                return Denoised(denoised.value + 1, denoised.uncond)
            return asked
        return wrap

    both = ("cond", "cond", "uncond", "uncond"), (0, 1, 0, 1)
    done = picture(Recording(), seeds=(1, 2), steps=1, wrap_models=(inner("a"), inner("b")), wraps=(outer("c"), outer("d")))
    assert order == [("d", 2), ("c", 2), ("b", *both), ("a", *both)]
    assert torch.allclose(done.latent, picture(Recording(), seeds=(1, 2), steps=1).latent + 2, atol=1e-4)


def test_a_wrap_may_ask_for_gradients(unet):
    seen = []

    def wrap(denoise):
        def asked(x, sigma):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                denoised = denoise(x, sigma)
                seen.append(torch.autograd.grad(denoised.value.square().sum(), x)[0])
            return Denoised(denoised.value.detach())
        return asked

    picture(unet, steps=1, wraps=(wrap,))
    assert float(seen[0].abs().max()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_is_stopped_is_the_last_steps_guess(unet, name):
    guesses = []

    def stop(i, denoised):
        guesses.append(denoised)
        if i == 2:
            raise Cancelled("Stopped by the user.")

    done = picture(unet, name, steps=6, on_step=stop)
    assert not done.complete and torch.equal(done.latent, guesses[-1]) and len(guesses) == 3


def test_stopping_is_seen_before_the_next_network_call():
    network, asked = Recording(), []

    def check():
        asked.append(None)
        if len(asked) == 4:                                 # within the second step of Heun
            raise Cancelled("Stopped by the user.")

    done = picture(network, "Heun", steps=6, check=check)
    assert not done.complete and len(network.seen) == 3


def test_a_picture_that_is_stopped_before_its_first_step_is_none_at_all():
    def check():
        raise Cancelled("Stopped by the user.")

    with pytest.raises(Cancelled):
        picture(Recording(), check=check)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_told_in_a_sentence(value):
    with pytest.raises(NanError, match="not numbers"):
        picture(Recording(output=lambda x: torch.full_like(x, value)))


def test_an_error_of_the_network_goes_on_to_the_caller():
    def broken(x):
        raise RuntimeError("a kernel failed")

    with pytest.raises(RuntimeError, match="a kernel failed"):
        picture(Recording(output=broken))


def test_a_sampler_gets_the_knobs_it_declares_and_no_others():
    every = {"eta": 0.5, "s_churn": 3, "s_tmin": 0.1, "s_tmax": 0.0, "s_noise": 1.01, "unheard_of": 1}
    assert sampler_arguments(catalogue.sampler("DPM++ 2M"), every) == {}
    assert sampler_arguments(catalogue.sampler("Euler a"), every) == {"eta": 0.5}
    assert sampler_arguments(catalogue.sampler("Euler"), every) == {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": math.inf, "s_noise": 1.01}
    assert sampler_arguments(catalogue.sampler("DPM++ 2M SDE Heun"), {"eta": None}) == {"eta": 1.0, "solver_type": "heun"}
    assert sampler_arguments(catalogue.sampler("DDIM"), {}) == {"eta": 0.0}


def test_the_first_latent_is_noise_at_the_first_level():
    noise, plain, unit = torch.ones(1, 4, 2, 2), catalogue.sampler("Euler"), catalogue.sampler("DDIM")
    assert torch.allclose(first_latent(noise, 3.0, plain), torch.tensor(3.0))
    assert torch.allclose(first_latent(noise, 3.0, plain, sgm_noise_multiplier=True), torch.tensor(10.0).sqrt())
    assert torch.allclose(first_latent(noise, 3.0, unit), torch.tensor(10.0).sqrt())


def test_a_cfgpp_sampler_at_scale_1_steps_by_the_noise_without_the_prompt(unet):
    network = Recording()
    picture(network, "Euler CFG++", cfg_scale=1.0)
    assert {len(x) for x, *_ in network.seen} == {2}
    plain = Recording()
    picture(plain, "Euler CFG++", cfg_scale=7.0, guided_model=False)
    assert {len(x) for x, *_ in plain.seen} == {1}


def test_three_texts_and_a_second_scale_go_three_to_a_call():
    network = Recording()
    picture(network, told=[([(1.0, text(1))], text(0), text(3))], image_cfg_scale=1.5)
    assert {len(x) for x, *_ in network.seen} == {3}
