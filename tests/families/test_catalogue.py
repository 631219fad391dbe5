"""Files of other kinds are refused with a sentence that says what they seem to be."""
import pytest
import torch

from modules.core.errors import CheckpointError
from modules.families.catalogue import family_of
from modules.families.shapes import shapes_of
from tests import tiny

U = "model.diffusion_model."


def under(prefix, names):
    return {prefix + name: shape for name, shape in names.items()}


def clip_l(prefix):
    return under(prefix, tiny.text_shapes())


def unet(**sizes):
    return under(U, tiny.unet_shapes(**sizes))


VAE = under("first_stage_model.", tiny.vae_shapes())
FILES = {
    "an empty file": {},
    "without its text encoders": {**unet(linear=True), **VAE},
    "label maps": {**unet(), **VAE, "cond_stage_model.channel_mapper.weight": (3, 182, 1, 1)},
    "AltDiffusion": {**unet(), "cond_stage_model.roberta.embeddings.position_ids": (1, 5)},
    "Zero123": {**unet(in_channels=8), **clip_l("cond_stage_model.transformer."), "cc_projection.weight": (64, 68)},
    "SD3": {f"{U}joint_blocks.0.context_block.attn.qkv.weight": (96, 32), f"{U}x_embedder.proj.weight": (32, 16, 2, 2)},
    "Flux": {"double_blocks.0.img_attn.qkv.weight": (96, 32)},
    "Wan": {f"{U}blocks.0.cross_attn.k.weight": (96, 96), f"{U}patch_embedding.weight": (96, 16, 1, 2, 2)},
    "ControlNet": {"control_model.input_blocks.0.0.weight": (32, 4, 3, 3), "control_model.zero_convs.0.0.weight": (32, 32, 1, 1)},
    "LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 32)},
    "a LoRA": {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (4, 32)},
    "VAE alone": tiny.vae_shapes(),
    "a VAE": VAE,
    "VAE": {"decoder.up_blocks.0.resnets.0.norm1.weight": (32,), "encoder.conv_in.weight": (32, 3, 3, 3)},
    "U-Net alone in diffusers' names": {"conv_in.weight": (32, 4, 3, 3), "down_blocks.0.resnets.0.norm1.weight": (32,)},
    "U-Net alone": tiny.unet_shapes(),
    "text encoder": tiny.text_shapes(),
    "embedding": {"emb_params": (4, 64)},
    "no model of a known kind": {"something.weight": (3,)},
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_of_another_kind_is_refused_by_what_it_seems_to_be(what):
    with pytest.raises(CheckpointError, match=what.replace("'", ".")):
        family_of(FILES[what])


def test_one_tensor_too_many_dimensions_short_does_not_break_the_question():
    header = {**shapes_of(tiny.sd1()), f"{U}middle_block.1.proj_in.weight": ()}
    assert family_of(header).name == "SD1"


def test_asking_for_the_family_reads_names_and_shapes_only():
    header = {name: tuple(tensor.shape) for name, tensor in tiny.sd1().items()}
    assert all(isinstance(shape, tuple) and not isinstance(shape, torch.Tensor) for shape in header.values())
    assert family_of(header).native_size == 512
