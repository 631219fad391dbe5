"""DDIM on the law of noise levels is DDIM by timesteps."""
import math

import pytest
import torch

from modules.sampling import catalogue, schedule
from modules.sampling.conditioning import Conditioning
from modules.sampling.denoise import denoise, first_latent
from modules.sampling.noise import Draws
from modules.sampling.prediction import Prediction, scaled_linear_alphas


class Curved(torch.nn.Module):
    """A network that bends: depends on the latent, the timestep and the text."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x, timesteps, context):
        return torch.tanh(self.weight * x + torch.cos(timesteps / 300)[:, None, None, None]) + context.mean(dim=(1, 2))[:, None, None, None]


def by_timesteps(network, kind, steps, eta, noise):
    """The method written over alphas and whole timesteps, z of unit variance: 1, 1 + k, 1 + 2k ... with k = 1000 // steps."""
    alphas = scaled_linear_alphas().double()
    timesteps = [min(t + 1, 999) for t in range(0, 1000, 1000 // steps)]
    z, evaluations = noise.first().double(), 0
    for index in range(len(timesteps) - 1, 0, -1):
        a, a_prev = float(alphas[timesteps[index]]), float(alphas[timesteps[index - 1]])
        output = network(z.float(), torch.full((len(z),), float(timesteps[index]))).double()
        e = output if kind == "eps" else math.sqrt(a) * output + math.sqrt(1 - a) * z
        sigma = eta * math.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        clean = (z - math.sqrt(1 - a) * e) / math.sqrt(a)
        z = math.sqrt(a_prev) * clean + math.sqrt(1 - a_prev - sigma**2) * e + sigma * noise.next().double()
        evaluations += 1
    return z.float(), evaluations


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("steps, eta", [(20, 0.0), (20, 1.0), (30, 0.5), (2, 1.0)])
def test_the_picture_is_that_of_the_timestep_method(kind, steps, eta):
    network, prediction, entry = Curved(), Prediction(kind, scaled_linear_alphas()), catalogue.sampler("DDIM")
    text = Conditioning(cross=torch.full((1, 77, 8), 0.1))
    shape, seeds, done = (4, 8, 8), [3, 4], []
    told = text.cross.expand(2, -1, -1)
    literal, evaluations = by_timesteps(lambda z, t: network(z, t, told).detach(), kind, steps, eta, Draws(seeds, seeds, 0.0, shape))
    noise = Draws(seeds, seeds, 0.0, shape)
    sigmas = schedule.ladder("Automatic", "DDIM", steps, prediction)
    x = first_latent(noise.first(), sigmas[0], entry)
    ours = denoise(network, prediction, x, sigmas, entry, conditioning_at=lambda call: [([(1.0, text)], text)] * 2, cfg_scale=1.0,
                   noise=noise, knobs={"eta": eta}, on_step=lambda i, denoised: done.append(i))
    assert len(done) == evaluations
    assert float((ours.latent - literal).abs().max()) <= 1e-5 * max(float(literal.abs().max()), 1.0)


def test_twenty_steps_take_nineteen_evaluations():
    assert len(schedule.ladder("Automatic", "DDIM", 20, Prediction("eps", scaled_linear_alphas()))) - 1 == 19
