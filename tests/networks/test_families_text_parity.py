"""Text towers, word pieces, boxes and the vector of sizes of every family against other people's; deliberate mistakes must fail."""
import math
import random
from dataclasses import replace
from functools import cache

import pytest
import torch

from modules.families.base import Framing
from modules.families.catalogue import family_of
from modules.families.parts import bert_from, tower_from
from modules.families.shapes import shapes_of
from modules.networks import bert as our_bert
from modules.prompts import vocabularies
from tests import tiny
from tests.oracles import published_families as oracles
from tests.oracles.published import open_oracles, relative_error
from tests.tiny_families import FAMILIES, bert_shapes, open_clip_shapes

BOUND = 1e-4                                                # of the oracle's standard deviation
GATE = f"<= {BOUND}"
FIRST, SECOND, ALONE = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model."
OPEN, BERT = "cond_stage_model.model.", "cond_stage_model.transformer."


@cache
def weights_of(name):
    return FAMILIES[name]()


def built(name):
    weights = weights_of(name)
    return family_of(shapes_of(weights)).build(weights)


def ids(pad, rows=2):
    """Texts of different lengths, then the end token, then what fills up."""
    found = torch.full((rows, 77), pad)
    for row in range(rows):
        length = 12 + 40 * row
        found[row, 1:length] = torch.randint(1, 49406, (length - 1,), generator=torch.Generator().manual_seed(row))
        found[row, 0], found[row, length] = 49406, 49407
    return found


def widest(*pairs):
    return max(relative_error(ours, theirs) for ours, theirs in pairs)


@cache
def open_clip_of(name, prefix):
    width, projection = weights_of(name)[f"{prefix}text_projection"].shape
    return oracles.open_clip_text(weights_of(name), prefix, width=width, layers=4, projection=projection)


@torch.inference_mode()
def open_clip_error(name, prefix, tower, normed):
    """Of the tower's answer, and of its vector where it gives one."""
    seen, pooled = tower.encode(ids(0))
    their_seen, their_pooled = oracles.open_clip_answers(open_clip_of(name, prefix), ids(0), normed)
    return widest((seen, their_seen), *([] if pooled is None else [(pooled, their_pooled)]))


OPEN_CLIP = [("SD2", OPEN, True), ("SD-Turbo", ALONE, True), ("SD2 x4 upscaler", OPEN, True), ("SDXL", SECOND, False),
             ("SDXL refiner", ALONE, False)]


@pytest.mark.parametrize("name, prefix, normed", OPEN_CLIP)
def test_the_openclip_tower_of_this_family_gives_what_open_clip_gives(name, prefix, normed, figure):
    """One layer before the last; with the final norm in Stable Diffusion 2, without it and with the text's vector in XL."""
    tower = built(name).text[-1]
    assert (tower.config.projection > 0) is (not normed)
    found = open_clip_error(name, prefix, tower, normed)
    figure("OpenCLIP tower against open_clip, standard deviations", found, GATE)
    assert found <= BOUND


OF_BOTH = ("norm", "layer", "k and v", "activation")        # SD2's tower gives no vector, and the miniature's has one head


@pytest.mark.parametrize("name, prefix, normed, spoil", [
    *((*OPEN_CLIP[0], spoil) for spoil in OF_BOTH), *((*OPEN_CLIP[3], spoil) for spoil in (*OF_BOTH, "heads", "projection", "end token")),
])
def test_an_openclip_tower_with_this_mistake_fails_the_comparison(name, prefix, normed, spoil):
    tower = built(name).text[-1]
    if spoil in ("norm", "layer"):
        tower.config = replace(tower.config, **({"final_norm": not normed} if spoil == "norm" else {"layer": 1}))
    for layer in tower.text_model.encoder.layers:
        attention = layer.self_attn
        if spoil == "heads":
            attention.heads = 1
        elif spoil == "k and v":
            attention.k_proj, attention.v_proj = attention.v_proj, attention.k_proj
        elif spoil == "activation":
            layer.mlp.quick = True
    if spoil == "projection":
        tower.text_projection.weight.data = torch.flip(tower.text_projection.weight.data, (0,))
    elif spoil == "end token":                              # the vector is read from the last place
        tower.encode = lambda given: tower.encode_embeddings(tower.token_embedding(given), torch.arange(77).expand_as(given))
    assert open_clip_error(name, prefix, tower, normed) > BOUND


def under_hf_names(name, prefix, *, layers=4):
    """The same family with its OpenCLIP tower in HF's names, as files that come from diffusers' layout have it."""
    others = {key: tensor for key, tensor in weights_of(name).items() if not key.startswith(prefix)}
    width, projection = weights_of(name)[f"{prefix}text_projection"].shape
    shapes = {**tiny.text_shapes(width=width, layers=layers), "text_projection.weight": (projection, width)}
    return {**others, **{prefix + key: tensor for key, tensor in tiny.draw(shapes, seed=5).items()}}, width, projection


@pytest.mark.parametrize("name, prefix", [("SDXL", SECOND), ("SDXL refiner", ALONE)])
@torch.inference_mode()
def test_the_openclip_tower_in_other_names_gives_what_transformers_gives(name, prefix, figure):
    weights, width, projection = under_hf_names(name, prefix)
    theirs = oracles.hf_text(weights, prefix, width=width, layers=4, heads=width // 64, projection=projection)
    answer = theirs(ids(0), output_hidden_states=True)
    seen, pooled = family_of(shapes_of(weights)).build(weights).text[-1].encode(ids(0))
    found = widest((seen, answer.hidden_states[-2]), (pooled, answer.text_embeds))
    figure("OpenCLIP tower in HF's names against transformers, standard deviations", found, GATE)
    assert found <= BOUND


@torch.inference_mode()
def test_the_shortened_tower_of_stable_diffusion_2_is_read_at_its_last_layer(figure):
    """diffusers leaves out the layer that is not read: the last one's normed answer is what was the last but one's."""
    weights, width, projection = under_hf_names("SD2", OPEN, layers=3)
    answer = oracles.hf_text(weights, OPEN, width=width, layers=3, heads=1, projection=projection)(ids(0), output_hidden_states=True)
    found = relative_error(family_of(shapes_of(weights)).build(weights).text[0].encode(ids(0))[0], answer.last_hidden_state)
    figure("OpenCLIP tower in HF's names against transformers, standard deviations", found, GATE)
    assert found <= BOUND


@torch.inference_mode()
def test_the_two_openclip_layouts_of_the_same_numbers_give_the_same_bits():
    """q, k and v joined or apart, the projection standing or lying."""
    shapes = open_clip_shapes(width=128, projection=96)
    joined = {SECOND + key: tensor for key, tensor in tiny.draw(shapes, seed=2).items()}
    there = tower_from(joined, SECOND, open_clip=True, layer=2, final_norm=False, pooled=True)
    apart = {SECOND + key: tensor.clone() for key, tensor in there.state_dict().items()}
    again = tower_from(apart, SECOND, open_clip=True, layer=2, final_norm=False, pooled=True)
    assert all(torch.equal(one, other) for one, other in zip(there.encode(ids(0)), again.encode(ids(0)), strict=True))


@torch.inference_mode()
def first_tower_error(tower):
    theirs = oracles.hf_text(weights_of("SDXL"), FIRST, width=64, layers=4, heads=1)
    return relative_error(tower.encode(ids(49407))[0], theirs(ids(49407), output_hidden_states=True).hidden_states[-2])


def test_the_first_tower_of_sdxl_gives_the_bare_answer_of_its_last_layer_but_one(figure):
    found = first_tower_error(built("SDXL").text[0])
    figure("first tower of SDXL against transformers, standard deviations", found, GATE)
    assert found <= BOUND


@pytest.mark.parametrize("spoil", [{"final_norm": True}, {"layer": 1}, {"layer": 3}], ids=str)
def test_the_first_tower_of_sdxl_with_this_mistake_fails_the_comparison(spoil):
    tower = built("SDXL").text[0]
    tower.config = replace(tower.config, **spoil)
    assert first_tower_error(tower) > BOUND


@pytest.mark.parametrize("skip", [1, 2, 3])
@torch.inference_mode()
def test_clip_skip_does_not_move_the_layer_that_a_tower_of_sdxl_is_read_at(skip):
    tower = built("SDXL").text[0]
    assert torch.equal(tower.encode(ids(49407), skip)[0], tower.encode(ids(49407))[0])


BERTS = {"words": {"width": 64, "layers": 3, "vocabulary": 30522, "positions": 77},
         "boxes": {"width": 64, "layers": 2, "vocabulary": 8192, "positions": 92}}


@cache
def bert_weights(kind):
    drawn = tiny.draw(bert_shapes(inner=128, **BERTS[kind]), seed=4)
    return {BERT + name: tensor for name, tensor in drawn.items()}


@torch.inference_mode()
def bert_error(kind, tower):
    of = BERTS[kind]
    given = torch.randint(0, of["vocabulary"], (2, of["positions"]), generator=torch.Generator().manual_seed(1))
    theirs = oracles.bert(bert_weights(kind), BERT, heads=2, **of)
    return relative_error(tower.encode(given)[0], theirs(given).last_hidden_state)


@pytest.mark.parametrize("kind", BERTS)
def test_the_encoder_of_the_first_models_gives_what_diffusers_gives(kind, figure):
    tower = bert_from(bert_weights(kind))
    assert tower.vocabulary == {"words": "bert", "boxes": "boxes"}[kind]
    found = bert_error(kind, tower)
    figure("BERT of the first models against diffusers, standard deviations", found, GATE)
    assert found <= BOUND


@pytest.mark.parametrize("spoil", ["heads", "k and v", "causal", "no final norm", "quick activation"])
def test_an_encoder_of_the_first_models_with_this_mistake_fails_the_comparison(spoil, monkeypatch):
    tower = bert_from(bert_weights("words"))
    for attention in (module for module in tower.modules() if isinstance(module, our_bert._Attention)):
        if spoil == "heads":
            attention.heads = 1
        elif spoil == "k and v":
            attention.to_k, attention.to_v = attention.to_v, attention.to_k
    if spoil == "causal":
        right = our_bert.attend
        monkeypatch.setattr(our_bert, "attend", lambda q, k, v: right(q, k, v, causal=True))
    elif spoil == "no final norm":
        tower.norm = torch.nn.Identity()
    elif spoil == "quick activation":
        for module in (module for module in tower.modules() if isinstance(module, torch.nn.GELU)):
            module.forward = lambda x: x * torch.sigmoid(1.702 * x)
    assert bert_error("words", tower) > BOUND


@torch.inference_mode()
def test_a_class_is_its_row_of_the_table_and_no_class_is_the_last_row():
    model, table = built("LDM cin256"), weights_of("LDM cin256")["cond_stage_model.embedding.weight"]
    answer = model.text[0].encode(torch.tensor([[207], [0], [-1]]))[0]
    assert torch.equal(answer, table[[207, 0, 1000]][:, None])


@cache
def pieces():
    """Theirs is written in Python from the paper's rule, apart from the library that ours stands on."""
    open_oracles()
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy
    file = vocabularies.word_piece_file()
    return vocabularies.WordPieces(file), BertTokenizerLegacy(str(file))


def random_texts(count=60):
    """Words of several scripts, accents, signs, digits, emoji, control characters, and words too long to be known."""
    draw = random.Random(7)
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEÀéîõüßŁñçΩжш数樹木日本ひカ한ع٣0123456789.,;:!?'\"-_/#$%&*+=<>@|~`^ \t\u00a0\u200b\u0301\ufffd🌲"
    words = ["castle", "unbelievably", "photorealistic", "jabberwocky", "x" * 101, "y" * 100, "naïve", "##ing", "don't", "C++", "4k"]
    return [" ".join(draw.choice([draw.choice(words), "".join(draw.choices(alphabet, k=draw.randint(1, 9)))])
                     for _ in range(draw.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("text", [
    "", " ", "a painting of a virus monster playing guitar", "Crème brûlée, naïve café", "東京の桜と富士山", "tabs\tand\nlines", "x" * 101,
    "it's 3.5% of £20 — “quoted”", "##ing ##s", "UPPER lower MiXeD", "\u0000nothing\ufffd\u200bseen", "🌲🌲 forest",
    " ".join(["word"] * 90), "unaffable" * 20,
])
def test_word_pieces_are_those_of_the_python_tokeniser_of_transformers(text):
    ours, theirs = pieces()
    expected = theirs(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert list(ours.chunk(text, literally=True).padded(0)) == expected


def test_word_pieces_of_random_texts_are_those_of_the_python_tokeniser_of_transformers():
    ours, theirs = pieces()
    for text in random_texts():
        expected = theirs(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
        assert list(ours.chunk(text, literally=True).padded(0)) == expected, text


def marks_by_the_rule(objects):
    """A layout as its training data had it: of 8192 marks the last is "nothing", and int(sqrt(8192)) = 90 sections lie along each edge."""
    sections = int(math.sqrt(8192))

    def corner(x, y):
        column, row = round(x * (sections - 1)), round(y * (sections - 1))
        return row * sections + column

    found = []
    for number, left, top, width, height in objects:
        found.extend([number, corner(left, top), corner(left + width, top + height)])
    while len(found) < 30 * 3:
        found.append(8192 - 1)
    return (*found, corner(0.0, 0.0), corner(1.0, 1.0))


@pytest.mark.parametrize("seed", range(8))
def test_the_marks_of_a_layout_follow_the_rule(seed):
    draw, objects = random.Random(seed), []
    for _ in range(draw.randint(0, 30)):
        left, top = round(draw.random(), 4), round(draw.random(), 4)
        objects.append((draw.randrange(0, 601), left, top, round(draw.uniform(0, 1 - left), 4), round(draw.uniform(0, 1 - top), 4)))
    text = "; ".join(" ".join(str(number) if index == 0 else f"{number:.4f}" for index, number in enumerate(one)) for one in objects)
    found = vocabularies.box_marks(text)
    assert found == marks_by_the_rule(objects)
    assert len(found) == 92


def test_the_marks_of_a_known_layout_are_these_numbers():
    """Halves of 89 sections round to the even one: 44.5 to 44; 44 * 90 + 44 = 4004, 89 * 90 + 89 = 8099."""
    found = vocabularies.box_marks("7 0 0 0.5 0.5; 12, 0.5, 0.5, 0.5, 0.5")
    assert found[:7] == (7, 0, 4004, 12, 4004, 8099, 8191)
    assert found[-2:] == (0, 8099)


@pytest.mark.parametrize("name, negative, score", [("SDXL", False, None), ("SDXL", True, None), ("SDXL refiner", False, 6.0),
                                                   ("SDXL refiner", True, 2.5)])
@torch.inference_mode()
def test_the_vector_beside_the_words_is_the_one_that_diffusers_makes(name, negative, score, figure):
    """Pooled text first, then each number as cosines and sines; the U-Net of the oracle says how wide."""
    model, frame, pooled = built(name), Framing(width=1344, height=768, crop=(8, 120)), torch.randn(1, 96)
    of = {**oracles.sizes(name, small=True), "mult": (1, 2), "depths": (0, 1), "middle_depth": 1, "width": 32, "head_dim": 32, "told": 16,
          "label": 96 + 16 * (5 if score else 6)}
    network = oracles.empty_unet(of)
    numbers = oracles.size_numbers(network, 96, height=768, width=1344, crop=(8, 120), score=score)
    theirs = oracles.told_vector(network, pooled, numbers[None], torch.randn(1, 4, 8, 8), torch.tensor([1.0]),
                                 torch.randn(1, 2, of["context"]))[0]
    found = relative_error(torch.cat((pooled, model.family.beside(model, frame, negative).vector), dim=1), theirs)
    figure("SDXL's vector of sizes against diffusers, standard deviations", found, GATE)
    assert found <= BOUND
