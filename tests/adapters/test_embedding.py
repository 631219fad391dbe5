"""Textual inversions: every form of file, found in a prompt by its tokens, put in for them, and named in text, record and lists."""
import base64
import json
import zlib
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from modules.adapters import embedding_pictures
from modules.adapters.embedding import Embeddings
from modules.core.errors import CheckpointError
from modules.core.hashing import Hashes
from modules.prompts.encode import EncodeCache, encode, encode_program
from modules.prompts.timeline import program
from modules.prompts.tokens import START, Tokenizer, chunks, count
from tests.prompts.test_linear import best

VECTORS = torch.arange(3 * 8.0).reshape(3, 8) / 7


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "embeddings"


@pytest.fixture
def embeddings(home, tmp_path):
    home.mkdir()
    return Embeddings((home, tmp_path / "gone"), Hashes(tmp_path / "hashes.json"))


def a1111(home, name="ti-test", vectors=VECTORS, **more):
    path = home / f"{name}.pt"
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": name, "step": 500, "sd_checkpoint": "abcd",
                "sd_checkpoint_name": "model", **more}, path)
    return path


def as_json(vectors, name="inside"):
    return json.dumps({"string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}, "name": name, "step": 7}).encode()


def with_chunk(path, vectors=VECTORS):
    chunk = PngImagePlugin.PngInfo()
    chunk.add_text("sd-ti-embedding", base64.b64encode(as_json(vectors)).decode())
    Image.new("RGB", (16, 16), "white").save(path, pnginfo=chunk)


def hidden(data, height=24):
    """The picture whose columns hold these bytes, written from the description alone: nibbles, key stream, two parting columns."""
    packed = zlib.compress(data)
    wide = -(-len(packed) // (height * 3))
    packed += bytes(range(1, 256)) * (1 + height * 3 // 255)
    block = numpy.frombuffer(packed[:height * wide * 3], dtype=numpy.uint8).reshape(height, wide, 3)
    seed, key = 0, []
    for _ in range(block.size):
        seed = (1664525 * seed + 1013904223) % 2**32
        key.append((seed % 255) & 15)
    key = numpy.array(key, dtype=numpy.uint8).reshape(block.shape)
    art = numpy.full((height, 10, 3), 0x5B, dtype=numpy.uint8)
    black = numpy.zeros((height, 1, 3), dtype=numpy.uint8)
    halves = [0x50 | ((half ^ key) & 15) for half in (block & 15, block >> 4)]
    inside = numpy.concatenate([halves[0], black, art, black, halves[1]], axis=1)
    return numpy.pad(inside, ((3, 2), (4, 1), (0, 0)))


def test_every_form_of_file_gives_the_same_vectors(home, embeddings, tokenizer):
    a1111(home, "one")
    a1111(home, "two", string_to_param=torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)}))
    torch.save({"<cat>": VECTORS}, home / "three.bin")
    (home / "deep").mkdir()
    save_file({"emb_params": VECTORS}, home / "deep" / "four.safetensors")
    torch.save({"string_to_param": {"*": VECTORS}, "string_to_token": {"*": 1}}, home / "old.pt", _use_new_zipfile_serialization=False)
    with_chunk(home / "six.png")
    Image.fromarray(hidden(as_json(VECTORS, "seven"))).save(home / "x.png")
    Image.new("RGB", (8, 8)).save(home / "one.preview.png")
    Image.new("RGB", (40, 40), "red").save(home / "holiday.png")
    loaded, skipped = embeddings.listed([8])
    assert sorted(loaded) == ["four", "inside", "old", "one", "seven", "three", "two"] and not skipped
    for one in loaded.values():
        assert torch.allclose(one.parts[0], VECTORS, atol=1e-6) and one.count == 3 and one.widths == (8,)
    assert (loaded["one"].step, loaded["one"].sd_checkpoint, loaded["one"].sd_checkpoint_name) == (500, "abcd", "model")
    assert loaded["inside"].step == 7
    assert embeddings.words(tokenizer, [8])


def test_a_single_vector_and_two_towers(home, embeddings):
    torch.save({"<dog>": VECTORS[0]}, home / "dog.bin")
    save_file({"clip_l": VECTORS, "clip_g": torch.ones(3, 16)}, home / "xl.safetensors")
    loaded, skipped = embeddings.listed([8, 16])
    assert list(loaded) == ["xl"] and list(skipped) == ["dog"] and skipped["dog"].count == 1
    assert loaded["xl"].rows(0, 8).tolist() == VECTORS.tolist() and loaded["xl"].rows(1, 16).tolist() == torch.ones(3, 16).tolist()
    assert list(embeddings.listed([8])[0]) == ["dog"]
    assert list(embeddings.listed([16])[0]) == ["xl"]       # SDXL's refiner has the second tower alone


@pytest.mark.parametrize("write, words", [
    (lambda home: a1111(home, vectors=torch.ones(76, 8)), "1 to 75 vectors"), (lambda home: (home / "x.pt").write_bytes(b"\x80\x02no"), "x.pt"),
    (lambda home: (home / "x.safetensors").write_bytes(b"<!doctype html>"), "x.safetensors"),
    (lambda home: a1111(home, vectors=torch.full((1, 8), float("nan"))), "finite"),
    (lambda home: torch.save({"a": torch.ones(2, 8), "b": torch.ones(3, 8)}, home / "x.bin"), "one length"),
    (lambda home: torch.save({"a": torch.ones(2, 2, 8)}, home / "x.bin"), "vectors")])
def test_what_is_no_embedding_gets_a_sentence(home, embeddings, write, words):
    write(home)
    loaded, skipped = embeddings.listed([8])
    assert not loaded and len(skipped) == 1 and words in next(iter(skipped.values()))


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"string_to_param": {"*": {"TORCHTENSOR": [[1], [2, 3]]}}}', b"[" * 100_000,
                                  b'{"string_to_param": 3}', b'{"a": {"TORCHTENSOR": [[NaN]]}}'])
def test_a_damaged_picture_gets_a_sentence(data, tmp_path):
    Image.fromarray(hidden(data)).save(tmp_path / "x.png")
    with pytest.raises(CheckpointError, match="x.png"):
        embedding_pictures.read(tmp_path / "x.png")


def test_a_pickle_that_asks_for_more_than_tensors_is_not_run(home, embeddings, tokenizer, tmp_path):
    torch.save({"string_to_param": {"*": VECTORS}, "x": SimpleNamespace(a=1)}, home / "evil.pt")
    known = embeddings.words(tokenizer, [8])
    assert [chunk.learned for chunk in chunks("evil", tokenizer, words=known)] == [()]
    assert "evil" in known.skipped["evil"] and "not opened" in known.skipped["evil"]


# ---- in a prompt

@pytest.mark.parametrize("text, places", [
    ("a ti-test b", [2, 3, 4]), ("a TI-Test b", [2, 3, 4]), ("ti-test", [1, 2, 3]), ("a ti-tests", []), ("(a ti-test:1.3)", [2, 3, 4]),
    ("a ti test", []), ("ti-test ti-test", [1, 2, 3, 4, 5, 6]), ("ti-test-more", [1]), ("a BREAK ti-test", [1, 2, 3])])
def test_a_name_is_found_where_its_tokens_stand(home, embeddings, tokenizer, text, places):
    a1111(home)
    a1111(home, "ti-test-more", VECTORS[:1])                # the longer name wins
    found = chunks(text, tokenizer, words=embeddings.words(tokenizer, [8]))
    learned = found[-1].learned
    assert [place for place, _, _ in learned] == places
    assert all(found[-1].ids[place] == 0 for place in places)
    assert [row for _, _, row in learned] == [row for _ in range(len(places) // 3) for row in range(3)] or text == "ti-test-more"
    if "1.3" in text:
        assert [found[-1].weights[place] for place in places] == [1.3] * 3


def test_an_embedding_that_does_not_fit_into_the_chunk_moves_whole(home, embeddings, tokenizer):
    a1111(home, vectors=torch.ones(20, 8))
    words = embeddings.words(tokenizer, [8])
    first, second = chunks("x " * 60 + "ti-test y", tokenizer, words=words)
    assert (first.used, second.used, len(second.learned), first.learned) == (60, 21, 20, ())
    assert count("x " * 60 + "ti-test y", tokenizer, words=words) == (96, 150)


class Tower:
    """What a chunk's ids or vectors are, plainly: vectors in, vectors out."""

    vocabulary, pad_id, width = "clip", 49407, 8

    def token_embedding(self, ids):
        return ids[:, :, None].expand(-1, -1, 8) / 1000.0

    def encode(self, ids, skip):
        return self.token_embedding(ids), None

    def encode_embeddings(self, vectors, ids, skip):
        return vectors, None


def test_its_vectors_stand_for_its_tokens_with_their_weight(home, embeddings, tokenizer):
    a1111(home)
    words = embeddings.words(tokenizer, [8])
    cross = encode("a (ti-test:2)", [Tower()], tokenizer, emphasis="No norm", words=words).cross[0]
    assert torch.equal(cross[2:5], VECTORS * 2) and cross[0, 0] == pytest.approx(START / 1000)
    assert torch.equal(cross[5:], encode("x", [Tower()], tokenizer).cross[0, 5:])
    plain = encode("a ti-test", [Tower()], tokenizer).cross
    assert not torch.equal(plain[0, 2:5], VECTORS)


def test_a_file_of_another_content_is_encoded_anew_and_the_words_are_told(home, embeddings, tokenizer):
    cache, said = EncodeCache(), program("[a:ti-test:3]", "no ti-test", 8)
    a1111(home)

    def made():
        return encode_program(said, [Tower()], tokenizer, cache=cache, emphasis="No norm", words=embeddings.words(tokenizer, [8]))

    first = made()
    assert [(one.name, one.sha256) for one in first.learned] == [("ti-test", Hashes(home / "h").sha256(home / "ti-test.pt"))]
    assert torch.equal(first.at(5)[0][0][1].cross[0, 1:4], VECTORS) and not torch.equal(first.at(0)[0][0][1].cross[0, 1:4], VECTORS)
    size = len(cache)
    made()
    assert len(cache) == size
    a1111(home, vectors=-VECTORS, step=501)
    assert torch.equal(made().at(5)[0][0][1].cross[0, 1:4], -VECTORS)


def test_one_of_another_width_stays_text_and_is_named(home, embeddings, tokenizer):
    a1111(home)
    known = embeddings.words(tokenizer, [16])
    assert chunks("a ti-test", tokenizer, words=known) == chunks("a ti-test", tokenizer)
    assert "8 numbers" in known.skipped["ti-test"] and "16" in known.skipped["ti-test"]


def test_listing_names_reads_no_file(home, embeddings, tokenizer):
    (home / "broken.pt").write_bytes(b"x")
    known = embeddings.words(tokenizer, [8])
    assert list(embeddings.files()) == ["broken"] and chunks("a cat", tokenizer, words=known) and not known.skipped


@pytest.mark.parametrize("unit", ["ti", "ti-", "ti-test-", "ti-test", "-test ", "test "])
def test_looking_for_names_takes_time_as_the_text_is_long(home, embeddings, tokenizer, unit):
    for length in range(1, 30):
        a1111(home, "ti" + "-test" * length, VECTORS[:1])
    words = embeddings.words(tokenizer, [8])
    large, small = (best(lambda text: chunks(text, tokenizer, words=words), (unit * size)[:size]) for size in (32_000, 8_000))
    assert large <= 10 * small + 0.02
