"""diffusers' own models, built from published configurations, say what their tensors are called; the published layout says the rest."""
import pytest
import torch

from modules.core.errors import CheckpointError
from modules.families import diffusers_names
from tests import tiny
from tests.oracles import published

SMALL = 32
SD1 = ({}, {})
SD2 = ({"context": 1024, "linear": True}, {"cross_attention_dim": 1024, "attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True})
SDXL = ({"mult": (1, 2, 4), "context": 2048, "linear": True, "label": 2816, "depths": (0, 2, 10), "middle_depth": 10}, {
    **published.sdxl_settings(), "block_out_channels": (SMALL, 2 * SMALL, 4 * SMALL), "attention_head_dim": (1, 2, 4)})
REFINER = ({"mult": (1, 2, 4, 4), "context": 1280, "linear": True, "label": 2560, "depths": (0, 4, 4, 0), "middle_depth": 4}, {
    **published.sdxl_settings(), "block_out_channels": (SMALL, 2 * SMALL, 4 * SMALL, 4 * SMALL), "attention_head_dim": (1, 2, 4, 4),
    "cross_attention_dim": 1280, "transformer_layers_per_block": 4, "projection_class_embeddings_input_dim": 2560,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")})
UNCLIP = ({**SD2[0], "label": 1536}, {**SD2[1], "class_embed_type": "projection", "projection_class_embeddings_input_dim": 1536})
INPAINT = ({"in_channels": 9}, {"in_channels": 9})
EACH = pytest.mark.parametrize("sizes, settings", [SD1, SD2, SDXL, REFINER, UNCLIP, INPAINT],
                               ids=["SD1", "SD2", "SDXL", "refiner", "unCLIP", "inpainting"])


def theirs(**settings):
    """Name -> shape of diffusers' U-Net; SD1's topology but for what is named."""
    base = published.unet_settings(width=SMALL)
    with torch.device("meta"):
        network = published.open_oracles().diffusers.UNet2DConditionModel(**base | settings)
    return shapes_of(network)


def shapes_of(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def ours(**sizes):
    return tiny.unet_shapes(**{"width": SMALL, "mult": (1, 2, 4, 4), "context": 768} | sizes)


@EACH
def test_the_names_and_shapes_of_diffusers_unet_become_those_of_the_published_layout(sizes, settings):
    found = theirs(**settings)
    names = diffusers_names.unet_to_plain(found)
    assert {plain: found[name] for name, plain in names.items()} == ours(**sizes)


@EACH
def test_every_name_of_a_unet_comes_back(sizes, settings):
    names = diffusers_names.unet_to_plain(theirs(**settings))
    assert diffusers_names.unet_to_diffusers(names.values()) == {plain: name for name, plain in names.items()}


def distilled():
    """SDXL after the published pruning to half its depth: no middle but its first block; other depths in every output block."""
    names = theirs(**SDXL[1])
    depths = {f"up_blocks.{level}.attentions.{block}.": depth
              for level, row in enumerate(((4, 4, 10), (2, 1, 1))) for block, depth in enumerate(row)}

    def kept(name):
        if name.startswith(("mid_block.attentions.", "mid_block.resnets.1.")):
            return False
        depth = next((depth for block, depth in depths.items() if name.startswith(block)), 99)
        return ".transformer_blocks." not in name or int(name.split(".transformer_blocks.")[1].split(".")[0]) < depth

    return [name for name in names if kept(name)]


def test_a_distilled_unet_keeps_the_depth_of_every_block_and_has_no_middle():
    names = diffusers_names.unet_to_plain(distilled())
    depth = [len({name.split(".")[4] for name in names.values() if name.startswith(f"output_blocks.{block}.1.transformer_blocks.")})
             for block in range(6)]
    assert depth == [4, 4, 10, 2, 1, 1]
    assert not any(name.startswith(("middle_block.1.", "middle_block.2.")) for name in names.values())
    assert diffusers_names.unet_to_diffusers(names.values()) == {plain: name for name, plain in names.items()}


def test_levels_with_one_residual_block_are_counted_as_such():
    """The U-Net of KOALA: one block a level going down, two going up, and in one size no middle."""
    found = theirs(**SDXL[1] | {"layers_per_block": 1, "transformer_layers_per_block": (1, 2, 5)})
    names = diffusers_names.unet_to_plain(found)
    expected = ours(**SDXL[0] | {"res_blocks": 1, "depths": (0, 2, 5), "middle_depth": 5})
    assert set(names.values()) == set(expected)
    assert diffusers_names.unet_to_diffusers(expected) == {plain: name for name, plain in names.items()}


def test_the_upscalers_embedding_of_noise_levels_is_the_single_files_label():
    found = theirs(in_channels=7, num_class_embeds=1000, use_linear_projection=True)
    names = diffusers_names.unet_to_plain(found)
    assert names["class_embedding.weight"] == "label_emb.weight"
    assert set(names.values()) == {*ours(in_channels=7, linear=True), "label_emb.weight"}


def test_attention_without_text_is_refused_naming_the_tensor():
    them = published.open_oracles().diffusers
    with torch.device("meta"):
        network = them.UNet2DModel(
            block_out_channels=(SMALL, SMALL), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1)
    with pytest.raises(CheckpointError, match=r"attentions\.0\..* without text"):
        diffusers_names.unet_to_plain(network.state_dict())


@pytest.mark.parametrize("extra", ["down_blocks.0.motion_modules.0.norm.weight", "down_blocks.9.resnets.0.conv1.weight", "x", "ä.b",
                                   "mid_block.resnets.0.gate.weight", "encoder_hid_proj.weight"])
def test_a_tensor_of_another_kind_of_model_is_named(extra):
    with pytest.raises(CheckpointError, match="has no place"):
        diffusers_names.unet_to_plain([*theirs(), extra])


@pytest.mark.parametrize("kind", ["KL", "VQ", "KL with attention inside the levels"])
def test_the_names_of_diffusers_vae_become_those_of_the_published_layout_and_come_back(kind):
    them = published.open_oracles().diffusers
    settings = published.vae_settings(width=SMALL)
    with torch.device("meta"):
        if kind == "VQ":
            network = them.VQModel(**{name: value for name, value in settings.items() if name != "sample_size"}, num_vq_embeddings=16)
        elif kind == "KL":
            network = them.AutoencoderKL(**settings)
        else:
            network = them.AutoencoderKL(**settings | {"down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
                                                       "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3})
    names = diffusers_names.vae_to_plain(shapes_of(network))
    expected = set(tiny.vae_shapes(width=SMALL, mult=(1, 2, 4, 4)))
    if kind == "VQ":
        expected |= {"quantize.embedding.weight"}
    if kind.endswith("levels"):
        parts = [f"{part}.{end}" for part in ("norm", "q", "k", "v", "proj_out") for end in ("weight", "bias")]
        expected |= {f"encoder.down.3.attn.{block}.{part}" for block in range(2) for part in parts}
        expected |= {f"decoder.up.3.attn.{block}.{part}" for block in range(3) for part in parts}
    assert set(names.values()) == expected and len(names) == len(network.state_dict())
    assert diffusers_names.vae_to_diffusers(names.values()) == {plain: name for name, plain in names.items()}


def whole(unet, *towers):
    """Name -> shape of a whole model in diffusers' layout; towers by their part, with names as transformers gives them."""
    text = {f"{tower}.{name}": shape for tower in towers for name, shape in tiny.text_shapes(layers=1).items()}
    return {f"unet.{name}": shape for name, shape in unet.items()} | {"vae.decoder.conv_in.weight": (1,), "safety_checker.x": (1,)} | text


@pytest.mark.parametrize("unet, towers, prefixes", [
    (SD1, ["text_encoder"], ["cond_stage_model.transformer."]),
    (SD2, ["text_encoder"], ["cond_stage_model.model."]),
    (SDXL, ["text_encoder", "text_encoder_2"], ["conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."]),
    (REFINER, ["text_encoder_2"], ["conditioner.embedders.0.model."]),
], ids=["SD1", "SD2", "SDXL", "refiner"])
def test_each_familys_text_towers_stand_where_its_single_files_have_them(unet, towers, prefixes):
    header = whole(theirs(**unet[1]), *towers)
    names = diffusers_names.to_plain(header)
    assert set(names) == {name for name in header if not name.startswith("safety_checker.")}
    for tower, prefix in zip(towers, prefixes, strict=True):
        assert {plain for name, plain in names.items() if name.startswith(f"{tower}.")} == {prefix + name for name in tiny.text_shapes(layers=1)}
    assert diffusers_names.to_diffusers(names.values()) == {plain: name for name, plain in names.items()}


def test_a_tower_without_its_wrappers_name_gets_it_back():
    names = diffusers_names.to_plain(whole(theirs()) | {"text_encoder.final_layer_norm.weight": (8,), "text_encoder.encoder.layers.0.x": (8,)})
    assert names["text_encoder.final_layer_norm.weight"] == "cond_stage_model.transformer.text_model.final_layer_norm.weight"


def test_a_unet_alone_gets_the_prefix_that_it_has_in_a_checkpoint():
    assert set(diffusers_names.to_plain(theirs()).values()) == {f"model.diffusion_model.{name}" for name in ours()}


@pytest.mark.parametrize("names", [
    tiny.sd1_shapes(), {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (4, 4)}, {},
    {"conv_in.weight": (1,), "down_blocks.0.resnets.0.norm1.weight": (1,), "controlnet_cond_embedding.conv_in.weight": (1,)},
], ids=["published layout", "LoRA", "nothing", "ControlNet"])
def test_what_is_not_diffusers_layout_is_left_alone(names):
    assert diffusers_names.to_plain(names) == {}


def test_the_first_text_models_tower_is_named_as_its_trainer_named_it():
    """Attention and feed-forward are layers 2i and 2i + 1 there (CompVis latent-diffusion, x-transformers)."""
    layer = "bert.model.layers.3."
    names = diffusers_names.to_plain(whole(theirs()) | dict.fromkeys((
        "bert.model.embed_tokens.weight", "bert.model.layer_norm.bias", f"{layer}self_attn.q_proj.weight", f"{layer}self_attn.out_proj.bias",
        f"{layer}fc1.weight", f"{layer}final_layer_norm.weight", "bert.to_logits.bias"), (1,)))
    tower = "cond_stage_model.transformer."
    assert [plain for name, plain in names.items() if name.startswith("bert.")] == [tower + name for name in (
        "token_emb.weight", "norm.bias", "attn_layers.layers.6.1.to_q.weight", "attn_layers.layers.6.1.to_out.bias",
        "attn_layers.layers.7.1.net.0.0.weight", "attn_layers.layers.7.0.weight", "to_logits.bias")]
