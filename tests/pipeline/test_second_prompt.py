"""SDXL's second text encoder may read words of its own: by a field or behind TE2:, told in the text, and made again."""
import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from modules.core.paths import Paths
from modules.engine import Engine
from modules.imaging import metadata, save
from modules.pipeline import infotext
from modules.pipeline.request import Request
from modules.prompts import grammar, tokens
from modules.prompts.encode import encode, encode_program
from modules.prompts.timeline import program
from modules.prompts.tokens import Tokenizer
from tests import tiny, tiny_families

ASKED = Request(prompt="a boat", negative_prompt="fog", seed=5, steps=2, width=64, height=64, checkpoint="xl.safetensors")
SMALL = {"text": (32, 64), "text_layers": (2, 2), "mult": (1, 1, 1), "depths": (0, 1, 1), "middle_depth": 1}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    paths = Paths.of(tmp_path_factory.mktemp("second"))
    paths.checkpoints[0].mkdir(parents=True)
    save_file(tiny_families.sdxl(**SMALL), paths.checkpoints[0] / "xl.safetensors")
    tiny.save_sd1(paths.checkpoints[0] / "one.safetensors", mult=(1, 1, 1, 1), text_layers=2)
    made = Engine(paths)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def made(engine, **changes):
    return engine.submit(dataclasses.replace(ASKED, **changes), save=False).result(120)


def test_a_field_and_the_short_form_give_one_picture_which_is_another_than_without(engine):
    field, short, plain, same = (made(engine, **changes).pictures[0] for changes in (
        {"prompt_2": "a house", "negative_prompt_2": "rain"}, {"prompt": "a boat TE2: a house", "negative_prompt": "fog TE2: rain"},
        {}, {"prompt_2": "a boat", "negative_prompt_2": "fog"}))
    assert field.image.tobytes() == short.image.tobytes() != plain.image.tobytes() == same.image.tobytes()
    read = infotext.read(field.infotext)
    assert (read.fields["Prompt 2"], read.fields["Negative prompt 2"]) == ("a house", "rain") and not infotext.leftovers(read)
    assert infotext.fields_of(read)["prompt_2"] == "a house"
    assert "Prompt 2" not in plain.infotext and "prompt_2" not in str(plain.record)
    assert engine.tools.replay(field.file).state == "identical"
    text_only = save.encode(metadata.pixels(field.file), field.infotext, "", "png")
    assert engine.tools.replay(text_only).state == "identical"


def test_its_wildcards_are_chosen_and_told(engine):
    (picture,) = made(engine, prompt_2="{a house, big|a tree, old}: <lora:x:1>").pictures
    read = infotext.read(picture.infotext)
    assert read.fields["Template 2"].startswith("{a house") and read.fields["Prompt 2"] in ("a house, big: <lora:x:1>", "a tree, old: <lora:x:1>")
    assert engine.tools.replay(picture.file).state == "identical"


def test_a_model_with_one_text_encoder_says_that_it_leaves_it_out(engine):
    with_it, without = (made(engine, checkpoint="one.safetensors", **changes) for changes in ({"prompt_2": "a house"}, {}))
    assert with_it.pictures[0].image.tobytes() == without.pictures[0].image.tobytes()
    assert any("second prompt" in sentence for sentence in with_it.warnings) and not without.warnings


@pytest.mark.parametrize("text, split", [
    ("a cat", ("a cat", None)), ("a TE2: b", ("a", "b")), ("TE2:", ("", "")), ("aTE2: b", ("aTE2: b", None)), ("a TE2 b", ("a TE2 b", None)),
    ("a TE2: b TE2: c", ("a", "b TE2: c")), ("a te2: b", ("a te2: b", None)), (r"a TE2\: b", (r"a TE2\: b", None))])
def test_what_stands_behind_the_mark_is_the_others(text, split):
    assert grammar.split_towers(text) == split


class Tower:
    """Its answer is the ids, times its number."""

    vocabulary, pad_id = "clip", 49407

    def __init__(self, width):
        self.width = width

    def encode(self, ids, skip):
        return ids[:, :, None].expand(-1, -1, self.width).float() * self.width, ids[:, :self.width].float()


def test_each_tower_reads_its_own_and_the_shorter_is_filled_with_empty_chunks(tokenizer):
    both = encode(("cat", "dog " * 80), [Tower(1), Tower(2)], tokenizer)
    first, empty = (encode(text, [Tower(1)], tokenizer).cross for text in ("cat", ""))
    other = encode("dog " * 80, [Tower(2)], tokenizer)
    assert torch.equal(both.cross[:, :, :1], torch.cat([first, empty], dim=1)) and torch.equal(both.cross[:, :, 1:], other.cross)
    assert torch.equal(both.vector[:, 1:], other.vector)


def test_the_steps_of_both_and_the_parts_of_and_go_together(tokenizer):
    towers = [Tower(1), Tower(2)]
    told = encode_program(program("[a:b:2] AND c :0.5", "n", 8), towers, tokenizer, second=program("[x:y:5]", "m", 8))

    def of(first, second):
        return encode((first, second), towers, tokenizer).cross

    for call in range(8):
        parts, negative = told.at(call)
        texts = ("a" if call <= 2 else "b", "x" if call <= 5 else "y")
        assert torch.equal(parts[0][1].cross, of(*texts)) and [weight for weight, _ in parts] == [1, 0.5]
        assert torch.equal(parts[1][1].cross, of("c", texts[1])) and torch.equal(negative.cross, of("n", "m"))


def test_the_counter_counts_the_longer_side(tokenizer):
    assert tokens.count("a b c TE2: d", tokenizer) == (3, 75) and tokens.count("a TE2: b c d", tokenizer, negative=True) == (3, 75)
