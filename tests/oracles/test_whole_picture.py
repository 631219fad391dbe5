"""A whole picture, words to pixels, against diffusers' pipeline on the same file with the same noise."""
import numpy as np
import pytest

from modules.core.paths import Paths
from modules.engine import Engine
from modules.pipeline.request import Request
from modules.sampling.noise import Draws
from tests import tiny
from tests.oracles.pipelines import SCHEDULE, pipeline, write_config
from tests.oracles.published import open_oracles

PROMPT, NEGATIVE, SIZE, STEPS, SEED = "a red boat on a lake, at night", "blurry", (128, 192), 10, 7
TIMESTEPS = [999 - 111 * step for step in range(STEPS)]     # the Uniform schedule of 10 steps falls on whole indices


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "Stable-diffusion"
    folder.mkdir()
    return tiny.save_sd1(folder / "tiny.safetensors")


@pytest.fixture(scope="module")
def engine(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("easel")
    engine = Engine(Paths.of(folder, models_dir=checkpoint.parent.parent))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def oracle(checkpoint, tmp_path_factory):
    return pipeline(checkpoint, write_config(
        tmp_path_factory.mktemp("config"), width=32, context=64, layers=4, heads=1, vae_width=32, mult=tiny.MULT))


def theirs(oracle, scheduler) -> np.ndarray:
    oracle.scheduler = scheduler
    noise = Draws([SEED], [0], 0.0, (4, SIZE[1] // 8, SIZE[0] // 8)).first()
    given = {"timesteps": TIMESTEPS} if "timesteps" in scheduler.set_timesteps.__code__.co_varnames else {}
    pixels = oracle(PROMPT, negative_prompt=NEGATIVE, width=SIZE[0], height=SIZE[1], num_inference_steps=STEPS, guidance_scale=7.0,
                    latents=noise, output_type="np", **given).images[0]
    return (pixels * 255).astype(np.uint8)                  # truncated, as we do


def ours(engine, sampler: str, **changes) -> np.ndarray:
    request = Request(prompt=PROMPT, negative_prompt=NEGATIVE, width=SIZE[0], height=SIZE[1], steps=STEPS, seed=SEED, sampler=sampler,
                      scheduler="Uniform", cfg_scale=7.0, checkpoint="tiny.safetensors", **changes)
    return np.asarray(engine.submit(request).result(timeout=200).pictures[0].image)


def test_a_euler_picture_is_the_one_diffusers_makes(engine, oracle, figure):
    scheduler = open_oracles().diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="linspace")
    figure("a 10-step Euler picture against diffusers, in 1/255", compare(ours(engine, "Euler"), theirs(oracle, scheduler)), "<= 2")


def test_a_dpmpp_2m_picture_is_the_one_diffusers_makes(engine, oracle, figure):
    scheduler = open_oracles().diffusers.DPMSolverMultistepScheduler(
        **SCHEDULE, timestep_spacing="linspace", algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero")
    found = compare(ours(engine, "DPM++ 2M", sgm_noise_multiplier=True), theirs(oracle, scheduler))
    figure("a 10-step DPM++ 2M picture against diffusers, in 1/255", found, "<= 2")


def test_another_sampler_would_be_noticed(engine, oracle):
    scheduler = open_oracles().diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="linspace")
    with pytest.raises(AssertionError):
        compare(ours(engine, "DPM++ 2M"), theirs(oracle, scheduler))


def compare(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference: at most 1/255 (the gate is 2) at any pixel, in pictures that are not flat."""
    assert a.shape == b.shape
    assert a.std() > 10, "the picture is too flat to compare"
    found = int(np.abs(a.astype(int) - b.astype(int)).max())
    assert found <= 1
    return found
