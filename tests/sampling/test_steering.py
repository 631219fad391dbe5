"""What stands beside plain guidance: against formulas written another way, against diffusers, and off means gone."""
import pytest
import torch
from diffusers.guiders import adaptive_projected_guidance as apg
from diffusers.guiders.guider_utils import rescale_noise_cfg

from modules.families.parts import unet_from
from modules.networks import changes
from modules.sampling import steering
from modules.sampling.conditioning import Conditioning
from modules.sampling.denoise import network_rows
from modules.sampling.guidance import Rows, cfg
from modules.sampling.prediction import Prediction, scaled_linear_alphas
from modules.sampling.samplers import Denoised
from tests import tiny

SIGMA = torch.tensor(3.0)
SCALE = 7.0


def draw(seed, *shape):
    return torch.randn(*(shape or (2, 4, 8, 8)), generator=torch.Generator().manual_seed(seed))


COND, UNCOND, X = draw(1), draw(2), draw(3) * 3
NOISY = draw(3, 2, 4, 16, 16) * 3                           # the miniature's middle is then two by two cells


def guidance(scale=SCALE):
    return lambda x, sigma: Denoised(UNCOND + scale * (COND - UNCOND), UNCOND)


def test_rescaling_is_that_of_the_velocity_by_diffusers():
    """v = (x / sqrt(1 + sigma^2) - sqrt(1 + sigma^2) * denoised) / sigma, Salimans and Ho 2022, for x of unit variance below the noise."""
    root = (1 + SIGMA ** 2).sqrt()
    velocity = {name: (X / root - root * guess) / SIGMA for name, guess in (("cond", COND), ("guided", guidance()(X, SIGMA).value))}
    wanted = (X / root - SIGMA * rescale_noise_cfg(velocity["guided"], velocity["cond"], 0.7)) / root
    assert torch.allclose(steering.rescaled(guidance(), SCALE, 0.7)(X, SIGMA).value, wanted, atol=1e-4)


@pytest.mark.parametrize("parallel, longest, momentum", [(0.0, 15.0, -0.5), (1.0, 0.0, 0.0), (0.3, 2.0, -0.75), (0.0, 0.0, 0.5)])
def test_projected_guidance_is_that_of_diffusers_over_several_calls(parallel, longest, momentum):
    kept, steered = apg.MomentumBuffer(momentum), steering.projected(guidance(), SCALE, parallel, longest, momentum)
    for _ in range(3):
        wanted = apg.normalized_guidance(COND, UNCOND, SCALE - 1, kept, parallel, longest, use_original_formulation=True)
        assert torch.allclose(steered(X, SIGMA).value, wanted, atol=1e-4)


def test_projected_guidance_without_limits_is_plain_guidance():
    plain = guidance()(X, SIGMA).value
    assert torch.allclose(steering.projected(guidance(), SCALE, 1.0, 0.0, 0.0)(X, SIGMA).value, plain, atol=1e-4)


def test_a_threshold_clips_at_the_percentile_and_brings_it_to_the_least():
    x = torch.arange(-50.0, 51.0).reshape(1, 1, 1, 101)
    clipped = steering.thresholded(x, 0.9, 1.0)
    assert torch.allclose(clipped, x.clamp(-45, 45) / 45, atol=1e-5)         # of 0, 1, 1, 2, 2, ... 50, 50 the nine tenths lie below 45
    assert torch.equal(steering.thresholded(x / 100, 0.9, 1.0), x / 100)     # the percentile does not reach it


def test_mimicking_the_scale_that_is_used_changes_nothing_and_a_lower_one_gives_its_spread():
    plain = guidance()(X, SIGMA).value
    assert torch.allclose(steering.mimicking(guidance(), SCALE, SCALE, 0.99)(X, SIGMA).value, plain, atol=1e-4)
    found, low = steering.mimicking(guidance(), SCALE, 3.0, 1.0)(X, SIGMA).value, guidance(3.0)(X, SIGMA).value
    ends = [(latent - latent.mean(dim=(2, 3), keepdim=True)).abs().amax(dim=(2, 3)) for latent in (found, low)]
    assert torch.allclose(*ends, atol=1e-3)


@pytest.mark.parametrize("wrap", [steering.rescaled, steering.mimicking])
def test_an_answer_without_guidance_goes_through_as_it_is(wrap):
    rest = (0.7,) if wrap is steering.rescaled else (3.0, 0.9)
    assert wrap(lambda x, sigma: Denoised(COND), SCALE, *rest)(X, SIGMA).value is COND


# ---- rows, and the network inside

@pytest.fixture(scope="module")
def unet():
    return unet_from({f"model.diffusion_model.{name}": tensor for name, tensor in tiny.draw(tiny.unet_shapes()).items()}, {}).eval()


@pytest.fixture(scope="module")
def network(unet):
    return network_rows(unet, Prediction("eps", scaled_linear_alphas()))


def told(seed):
    return Conditioning(cross=draw(seed, 1, 77, 64))


def ask(network, x=NOISY, scale=SCALE, parts=None):
    with torch.no_grad():
        return cfg(network, lambda call: [(parts or [(1.0, told(seed))], told(9)) for seed in range(len(x))], scale)(x, SIGMA)


def clean(unet):
    return all("forward" not in module.__dict__ and "join" not in module.__dict__ for module in unet.modules())


@pytest.mark.parametrize("change", [changes.without_looking, changes.without_layers], ids=["PAG", "SLG"])
@pytest.mark.parametrize("scale", [SCALE, 1.0])
def test_led_away_is_guided_plus_strength_times_prompt_less_prompt_of_the_worse_network(network, unet, change, scale):
    plain, own = ask(network, scale=scale).value, ask(network, scale=1.0).value
    with change(unet, NOISY.shape[-2:]):
        worse = ask(network, scale=1.0).value
    found = ask(steering.led_away(network, change, 3.0), scale=scale)
    assert torch.allclose(found.value, plain + 3.0 * (own - worse), atol=1e-3) and not torch.allclose(own, worse, atol=1e-2)
    assert clean(unet)


def test_led_away_only_between_its_noise_levels(network):
    plain = ask(network)
    for since, until in ((2.9, 0.0), (99.0, 3.1)):
        assert torch.equal(ask(steering.led_away(network, changes.without_looking, 3.0, since, until)).value, plain.value)


def test_a_cell_that_sees_itself_alone_is_attention_with_the_identity_as_its_map(unet):
    attention = changes._middle_blocks(unet)[0].attn1
    x = draw(4, 1, 16, attention.to_q.in_features)
    with torch.no_grad(), changes.without_looking(unet, torch.Size((8, 8))):
        alone = torch.cat([attention(x[:, i:i + 1], x[:, i:i + 1]) for i in range(16)], dim=1)
        assert torch.allclose(attention(x, x), alone, atol=1e-5)
    with torch.no_grad():
        one = torch.cat([attention(x[:, i:i + 1], x[:, i:i + 1]) for i in range(16)], dim=1)
    assert torch.allclose(one, alone, atol=1e-5)             # one token's softmax is 1


def test_free_u_is_that_of_diffusers_and_the_later_version_with_flat_features_strengthens_nothing(unet):
    from diffusers.utils.torch_utils import apply_freeu
    width = unet.config.channels
    for stage, factor in ((0, 4), (1, 2)):
        x, skip = draw(5, 1, factor * width, 8, 8), draw(6, 1, width, 8, 8)
        wanted = torch.cat(apply_freeu(stage, x.clone(), skip.clone(), b1=1.3, b2=1.4, s1=0.9, s2=0.2), dim=1)
        with changes.free_u(1.3, 1.4, 0.9, 0.2, version=1)(unet, torch.Size((8, 8))):
            assert torch.allclose(unet.join(x, skip), wanted, atol=1e-5)
        with changes.free_u(1.3, 1.4, 1.0, 1.0, version=2)(unet, torch.Size((8, 8))):
            flat = torch.ones(1, factor * width, 8, 8)
            assert torch.allclose(unet.join(flat, skip), torch.cat((flat, skip), dim=1), atol=1e-5)
    with changes.free_u(1.3, 1.4, 0.9, 0.2)(unet, torch.Size((8, 8))):
        assert torch.equal(unet.join(x[:, :width], skip), torch.cat((x[:, :width], skip), dim=1))
    assert clean(unet)


# ---- fewer tokens

def test_merging_takes_the_likest_and_copies_their_mean_back():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, -0.5]])[None]        # a two by two cell; the first is its corner
    merge, back = changes.matching(x, torch.Size((2, 2)), 1)
    tokens = torch.tensor([[2.0], [4.0], [6.0], [8.0]])[None]
    fewer = merge(tokens)
    assert sorted(fewer.flatten().tolist()) == [3.0, 6.0, 8.0]
    assert back(fewer).flatten().tolist() == [3.0, 3.0, 6.0, 8.0]


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (2, 3)])
def test_merging_nothing_and_copying_back_gives_every_token_its_place(size):
    x = draw(7, 2, size[0] * size[1], 6)
    merge, back = changes.matching(x, torch.Size(size), 0)
    assert torch.equal(back(merge(x)), x)
    merge, back = changes.matching(x, torch.Size(size), 3)
    assert merge(x).shape[1] == x.shape[1] - 3 and int((back(merge(x)) != x).any(-1).sum(1).max()) <= 6


def test_cells_that_are_alike_may_be_merged_without_a_difference(unet):
    """Four equal tokens for one weigh in every softmax alike, so attention over a quarter of them is the same."""
    block = next(layer for layer in changes.transformers(unet)).transformer_blocks[0]
    x = draw(8, 1, 4, 4, block.norm1.normalized_shape[0]).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    context = draw(9, 1, 77, 64)
    with torch.no_grad():
        plain = block(x, context)
        with changes.merged_tokens(0.75)(unet, torch.Size((8, 8))):
            assert torch.allclose(block(x, context), plain, atol=1e-4)
        with changes.merged_tokens(0.5)(unet, torch.Size((9, 9))):
            assert torch.equal(block(x, context), plain)    # not the latent's own resolution
    assert clean(unet)


def test_tiles_see_themselves_alone(unet):
    attention = next(layer for layer in changes.transformers(unet)).transformer_blocks[0].attn1
    x = draw(10, 1, 8, 8, attention.to_q.in_features)
    with torch.no_grad():
        with changes.tiled_attention(4)(unet, torch.Size((8, 8))):
            tiled = attention(x.flatten(1, 2), x.flatten(1, 2)).unflatten(1, (8, 8))
        part = x[:, 4:, :4].flatten(1, 2)
        assert torch.allclose(tiled[:, 4:, :4].flatten(1, 2), attention(part, part), atol=1e-5)
        with changes.tiled_attention(8)(unet, torch.Size((8, 8))):
            assert torch.equal(attention(x.flatten(1, 2), x.flatten(1, 2)), attention(x.flatten(1, 2), x.flatten(1, 2)))
    assert clean(unet) and [changes._parts(64, least) for least in (32, 33, 64, 99)] == [2, 1, 1, 1]


# ---- self-attention guidance

def test_the_map_says_how_much_each_cell_is_looked_at(unet):
    maps = []
    with torch.no_grad(), changes.watched(unet, torch.Size((16, 16)), maps):
        unet(NOISY, torch.tensor([500.0, 500.0]), draw(11, 2, 77, 64))
    assert len(maps) == 1 and maps[0].shape[0] == 2 and torch.allclose(maps[0].mean(dim=(1, 2)), torch.ones(2), atol=1e-4)
    assert clean(unet)


def test_self_attention_guidance_is_guided_plus_strength_times_blurred_less_what_the_blurred_one_becomes(network):
    """With every cell above the threshold the whole guess is blurred; the formula is then written out by hand."""
    uncond = ask(network).uncond
    blurred = steering.blurry(uncond, 1.0)
    degraded = blurred + (NOISY - uncond)
    with torch.no_grad():
        worse = cfg(network, lambda call: [([(1.0, told(9))], told(9))] * 2, 1.0)(degraded, SIGMA).value
    found = ask(steering.self_attentive(network, 0.75, threshold=-1.0)).value
    assert torch.allclose(found, ask(network).value + 0.75 * (blurred - worse), atol=1e-3)
    nothing = ask(steering.self_attentive(network, 0.75, threshold=1e9)).value
    assert torch.allclose(nothing, ask(network).value, atol=1e-3)     # what is not blurred comes back as it was


@pytest.mark.parametrize("wrap", [lambda inner: steering.self_attentive(inner, 0.75, threshold=-1.0),
                                  lambda inner: steering.led_away(inner, changes.without_looking, 3.0)], ids=["SAG", "PAG"])
def test_rows_asked_together_or_apart_are_steered_alike(network, wrap):
    """Prompts of another length than the negative one go in a call of their own."""
    parts = [(1.0, told(1)), (0.5, told(2))]
    texts = [(parts, told(9))] * 2
    with torch.no_grad():
        together, apart = (cfg(wrap(network), lambda call: texts, SCALE, batch_rows_limit=limit)(NOISY, SIGMA).value for limit in (None, 1))
    assert torch.allclose(together, apart, atol=2e-3) and not torch.allclose(together, ask(network, parts=parts).value, atol=1e-1)


def test_a_blur_keeps_what_is_flat_and_the_sum_of_a_point():
    point = torch.zeros(1, 1, 17, 17)
    point[..., 8, 8] = 1
    assert torch.allclose(steering.blurry(torch.ones(1, 2, 8, 8), 1.0), torch.ones(1, 2, 8, 8), atol=1e-6)
    assert float(steering.blurry(point, 1.0).sum()) == pytest.approx(1, abs=1e-5)


# ---- nothing remains

def test_a_change_is_gone_after_a_call_that_failed_and_changes_may_be_nested(unet):
    def failing(unet_, size):
        raise RuntimeError("no such change")

    rows = Rows(x=NOISY, sigma=SIGMA, conditioning=Conditioning(cross=draw(12, 2, 77, 64)), which=("cond",) * 2, picture=(0, 1), part=(0, 0),
                weights=(1.0, 1.0), shares=(1.0, 1.0), changes=(changes.merged_tokens(0.5), changes.tiled_attention(4), failing))
    with pytest.raises(RuntimeError):
        network_rows(unet, Prediction("eps", scaled_linear_alphas()))(rows)
    assert clean(unet)
    with changes.without_layers(unet, torch.Size((8, 8))), changes.without_looking(unet, torch.Size((8, 8))):
        pass
    assert clean(unet)


@pytest.mark.parametrize("change", [changes.merged_tokens(0.5), changes.free_u(1.3, 1.4, 0.9, 0.2), changes.tiled_attention(2)],
                         ids=["ToMe", "FreeU", "HyperTile"])
def test_a_change_changes_the_picture_and_the_next_one_is_as_before(network, unet, change):
    before = ask(network).value
    assert not torch.allclose(ask(steering.changed(network, change)).value, before, atol=1e-3)
    assert torch.equal(ask(network).value, before) and clean(unet)
