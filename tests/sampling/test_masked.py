"""What a mask keeps at each noise level."""
import torch

from modules.sampling import masked
from modules.sampling.prediction import Prediction, scaled_linear_alphas
from modules.sampling.samplers import Denoised

PREDICTION = Prediction("eps", scaled_linear_alphas(0.00085, 0.012))


def test_outside_the_mask_the_guess_is_what_is_kept_with_and_without_the_prompt():
    paint, kept = torch.tensor([1.0, 0.0]), torch.tensor([5.0, 6.0])
    wrapped = masked.kept(lambda x, sigma: Denoised(x, 2 * x), kept, masked.hard(paint))
    found = wrapped(torch.tensor([1.0, 2.0]), torch.tensor(3.0))
    assert found.value.tolist() == [1.0, 6.0] and found.uncond.tolist() == [2.0, 6.0]


def test_a_latent_of_unit_variance_is_held_without_noise():
    seen = []
    wrapped = masked.held(lambda x, sigma: seen.append(x) or Denoised(x), torch.tensor([5.0, 6.0]), masked.hard(torch.tensor([1.0, 0.0])))
    wrapped(torch.tensor([1.0, 2.0]), torch.tensor(3.0))
    assert torch.allclose(seen[0] / 10 ** 0.5, torch.tensor([1 / 10 ** 0.5, 6.0]))


def test_a_grey_place_may_change_in_its_share_of_the_way_and_a_black_one_never():
    grey = torch.tensor([0.0, 0.25, 0.5, 1.0])
    at = masked.soft(grey, PREDICTION, PREDICTION.sigma_of(torch.tensor(800.0)))
    open_ = [at(PREDICTION.sigma_of(torch.tensor(float(t)))).tolist() for t in (800, 500, 390, 190)]
    assert open_ == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    assert at(torch.tensor(0.0)).tolist() == [0, 1, 1, 1]
