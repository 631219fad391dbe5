"""The running mean against its formula."""
import pytest
import torch

from modules.training.ema import LitEma, published_name


def walk(decay, warm_up, count=30):
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, generator=generator))
    ema, shadow = LitEma({"a.b": weight}, decay, warm_up=warm_up), weight.detach().double()
    for n in range(1, count + 1):
        weight.data.copy_(torch.randn(5, generator=generator))
        ema.update()
        d = min(decay, (1 + n) / (10 + n)) if warm_up else decay
        shadow = shadow - (1 - d) * (shadow - weight.detach().double())
    return ema, shadow, weight


@pytest.mark.parametrize("decay, warm_up", [(0.9999, True), (0.5, True), (0.9, False)])
def test_the_mean_follows_its_formula(decay, warm_up):
    ema, shadow, _ = walk(decay, warm_up)
    torch.testing.assert_close(ema.shadows[0].double(), shadow, rtol=1e-5, atol=1e-6)


def test_the_warm_up_begins_at_two_elevenths_and_ends_at_the_decay():
    ema, _, _ = walk(0.75, True, count=1)
    assert ema.effective_decay() == pytest.approx(2 / 11)
    ema, _, _ = walk(0.75, True, count=26)
    assert ema.effective_decay() == pytest.approx(0.75)     # 27 / 36


def test_published_names_have_no_dots_behind_the_prefix():
    assert published_name("diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"
    ema, _, _ = walk(0.9, True, count=3)
    found = ema.published()
    assert set(found) == {"model_ema.ab", "model_ema.decay", "model_ema.num_updates"}
    assert found["model_ema.decay"].dtype == torch.float32 and found["model_ema.decay"].dim() == 0
    assert found["model_ema.num_updates"].dtype == torch.int32 and int(found["model_ema.num_updates"]) == 3
    assert int(walk(0.9, False)[0].published()["model_ema.num_updates"]) == -1


def test_weights_come_back_bit_for_bit_after_the_mean_was_looked_at():
    ema, _, weight = walk(0.9, True)
    before = weight.detach().clone()
    with ema.applied():
        assert torch.equal(weight, ema.shadows[0])
    assert torch.equal(weight, before)


def test_a_mean_taken_up_again_goes_on_where_it_was():
    ema, _, weight = walk(0.9, True)
    other = LitEma({"a.b": weight}, 0.9)
    other.restore({name: tensor.clone() for name, tensor in ema.state().items()})
    ema.update()
    other.update()
    assert torch.equal(ema.shadows[0], other.shadows[0]) and ema.num_updates == other.num_updates == 31
