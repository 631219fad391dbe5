"""Chunks through real text towers of miniature size: weights, padding, schedules, and that no text sees another."""
import threading
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.core.errors import PromptError
from modules.networks.clip import ClipConfig, ClipText
from modules.prompts.encode import EncodeCache, emphasised, encode, encode_program, pad_to
from modules.prompts.timeline import program
from modules.prompts.tokens import chunks
from modules.sampling.conditioning import Conditioning

WIDTH = 16


def build(seed, pad_id):
    """A tower of three layers with drawn weights; it comes from its constructor without any."""
    tower = ClipText(ClipConfig(width=WIDTH, layers=3, heads=2, inner=32, vocabulary=49408, positions=77, pad_id=pad_id)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            torch.nn.init.normal_(weight, mean=float("norm" in name and name.endswith("weight")), std=0.3, generator=generator)
    return tower


@pytest.fixture(scope="module")
def tower():
    """Padded with end tokens, as CLIP-L is."""
    return build(0, 49407)


@pytest.fixture(scope="module")
def other_tower():
    """Padded with zeros, as OpenCLIP's are."""
    return build(1, 0)


@pytest.fixture(params=["CLIP", "OpenCLIP"])
def any_tower(request, tower, other_tower):
    return tower if request.param == "CLIP" else other_tower


def cross(text, tower, tokenizer, **options):
    return encode(text, [tower], tokenizer, **options).cross


def test_a_plain_text_is_what_the_tower_gives_for_its_ids(any_tower, tokenizer):
    chunk, = chunks("a photo of a cat", tokenizer)
    with torch.no_grad():
        expected = any_tower.encode(torch.tensor([chunk.padded(any_tower.pad_id)]), 1)[0]
    found = cross("a photo of a cat", any_tower, tokenizer)
    assert found.shape == (1, 77, WIDTH) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found, expected)


def test_chunks_lie_one_after_the_other(any_tower, tokenizer):
    together = cross("a cat BREAK a (dog:1.4) BREAK sun", any_tower, tokenizer)
    apart = torch.cat([cross(text, any_tower, tokenizer) for text in ("a cat", "a (dog:1.4)", "sun")], dim=1)
    assert together.shape == (1, 231, WIDTH)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_a_long_text_may_take_more_than_one_call_of_the_tower(tower, tokenizer):
    assert cross("a " * 75 * 70, tower, tokenizer).shape == (1, 70 * 77, WIDTH)


def test_weights_multiply_the_vectors_and_original_gives_the_mean_back(any_tower, tokenizer):
    plain = cross("a cat", any_tower, tokenizer)
    weights = torch.ones(1, 77, 1)
    weights[:, 2] = 1.5
    torch.testing.assert_close(cross("a (cat:1.5)", any_tower, tokenizer, emphasis="No norm"), plain * weights)
    original = cross("a (cat:1.5)", any_tower, tokenizer)
    assert original.mean().item() == pytest.approx(plain.mean().item(), rel=1e-4)
    torch.testing.assert_close(original, plain * weights * (plain.mean() / (plain * weights).mean()))


def test_original_and_no_norm_differ_by_one_factor_only(any_tower, tokenizer):
    ratio = cross("a (cat:1.5) [dog]", any_tower, tokenizer) / cross("a (cat:1.5) [dog]", any_tower, tokenizer, emphasis="No norm")
    assert ratio.std() < 1e-4 and abs(ratio.mean() - 1) > 1e-6


def test_ignore_reads_the_brackets_and_none_tokenises_them(tower, tokenizer):
    plain = cross("a cat", tower, tokenizer)
    assert torch.equal(cross("a (cat:1.5)", tower, tokenizer, emphasis="Ignore"), plain)
    literal = cross("a (cat:1.5)", tower, tokenizer, emphasis="None")
    chunk, = chunks("a (cat:1.5)", tokenizer, emphasis="None")
    with torch.no_grad():
        assert torch.equal(literal, tower.encode(torch.tensor([chunk.ids]), 1)[0])
    assert not torch.equal(literal, plain)


def test_the_mean_is_given_back_to_each_chunk_alone():
    torch.manual_seed(0)
    z, weights = torch.randn(3, 77, 8) + 0.5, torch.rand(3, 77) + 0.5
    together = emphasised(z, weights, "Original")
    for row in range(3):
        torch.testing.assert_close(together[row:row + 1], emphasised(z[row:row + 1], weights[row:row + 1], "Original"))
        assert together[row].mean().item() == pytest.approx(z[row].mean().item(), rel=1e-4)


def test_a_mean_of_zero_leaves_numbers():
    z = torch.ones(1, 77, 4)
    weights = torch.ones(1, 77)
    weights[:, :38], weights[:, 38:76], weights[:, 76] = 1, -1, 0
    assert emphasised(z, weights, "Original").isfinite().all()


@pytest.mark.parametrize("text", ["(a:0)", "(a:-3) b", "(" * 500 + "a", "[" * 500 + "a"])
def test_extreme_weights_give_numbers(tower, tokenizer, text):
    assert cross(text, tower, tokenizer).isfinite().all()


def test_clip_skip_reaches_the_tower(any_tower, tokenizer):
    assert not torch.equal(cross("a cat", any_tower, tokenizer, clip_skip=2), cross("a cat", any_tower, tokenizer))


def test_two_towers_stand_side_by_side_each_with_its_own_padding_and_mean(tower, other_tower, tokenizer):
    both = encode("a (cat:1.5)", [tower, other_tower], tokenizer).cross
    assert torch.equal(both[..., :WIDTH], cross("a (cat:1.5)", tower, tokenizer))
    assert torch.equal(both[..., WIDTH:], cross("a (cat:1.5)", other_tower, tokenizer))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["a (cat:1.5)", "a " * 90, "[a|b]", "x BREAK y", "", "dog AND sun"]), min_size=1, max_size=4))
def test_a_text_is_the_same_bit_for_bit_whatever_else_was_encoded(tower, tokenizer, others):
    cache = EncodeCache()
    alone = cross("a (castle:1.3) in fog", tower, tokenizer)
    for other in others:
        encode_program(program(other, other, 3), [tower], tokenizer, cache=cache)
    (_, cond), = encode_program(program("a (castle:1.3) in fog", "", 3), [tower], tokenizer, cache=cache).at(0)[0]
    assert torch.equal(cond.cross, alone)


def test_a_program_gives_each_call_the_conditioning_of_its_text(tower, tokenizer):
    encoded = encode_program(program("a [cat:dog:2] :1.5 AND [sun|moon]", "[x:2]", 4), [tower], tokenizer)
    for call, first, second, negative in ((0, "a cat", "sun", ""), (2, "a cat", "moon", ""), (3, "a dog", "sun", "x")):
        parts, uncond = encoded.at(call)
        assert [weight for weight, _ in parts] == [1.5, 1.0]
        for cond, text in ((parts[0][1], first), (parts[1][1], second), (uncond, negative)):
            assert torch.equal(cond.cross, cross(text, tower, tokenizer))
    assert encoded.at(0)[0][1][1] is encoded.at(3)[0][1][1], "equal texts are one object"


def test_shorter_steps_of_a_schedule_are_filled_with_empty_chunks_and_other_schedules_are_not(tower, other_tower, tokenizer):
    for one in (tower, other_tower):
        encoded = encode_program(program("a [cat:" + "dog " * 80 + ":2]", "blurry", 4), [one], tokenizer)
        parts, uncond = encoded.at(0)
        empty = cross("", one, tokenizer)
        assert torch.equal(parts[0][1].cross, torch.cat([cross("a cat", one, tokenizer), empty], dim=1))
        assert encoded.at(4)[0][0][1].cross.shape == (1, 154, WIDTH)
        assert uncond.cross.shape == (1, 77, WIDTH)


def test_shorter_parts_of_and_repeat_their_last_vector(tower, tokenizer):
    (_, short), (_, long) = encode_program(program("cat AND " + "dog " * 80, "", 4), [tower], tokenizer).at(0)[0]
    alone = cross("cat", tower, tokenizer)
    assert short.cross.shape == long.cross.shape == (1, 154, WIDTH)
    assert torch.equal(short.cross, torch.cat([alone, alone[:, -1:].expand(1, 77, WIDTH)], dim=1))


def test_padding_keeps_what_is_long_enough():
    cond, empty = Conditioning(cross=torch.randn(2, 154, 4)), Conditioning(cross=torch.zeros(1, 77, 4))
    assert pad_to(cond, 77, empty) is cond
    assert pad_to(cond, 308, empty).cross.shape == (2, 308, 4)


@dataclass
class Counted:
    """Counts the texts that reach a real tower."""

    tower: object
    pad_id: int = 49407
    width: int = WIDTH
    vocabulary: str = "clip"
    calls: int = 0

    def encode(self, ids, skip):
        self.calls += 1
        return self.tower.encode(ids, skip)


def test_equal_texts_reach_the_tower_once_and_a_cache_serves_the_next_picture(tower, tokenizer):
    counted, cache = Counted(tower), EncodeCache()
    for _ in range(3):
        encode_program(program("[cat|dog] AND cat", "cat", 20), [counted], tokenizer, cache=cache, identity="m")
    assert counted.calls == 3                               # "cat", "dog", " cat"


@pytest.mark.parametrize("change", [{"identity": "other"}, {"clip_skip": 2}, {"emphasis": "No norm"}, {"comma_padding_backtrack": 0}])
def test_another_model_or_setting_is_not_served_from_the_cache(tower, tokenizer, change):
    counted, cache = Counted(tower), EncodeCache()
    encode_program(program("cat", "cat", 2), [counted], tokenizer, cache=cache, identity="m")
    encode_program(program("cat", "cat", 2), [counted], tokenizer, cache=cache, **{"identity": "m", **change})
    assert counted.calls == 2


def test_the_cache_forgets_what_was_used_longest_ago_and_holds_no_more_than_its_limit():
    cache = EncodeCache(limit=2 * 77 * 4 * 4)
    made = []

    def make(name):
        return cache.find(name, lambda: made.append(name) or Conditioning(cross=torch.zeros(1, 77, 4)))

    for name in "abacab":
        make(name)
    assert made == ["a", "b", "c", "b"] and len(cache) == 2
    cache.clear()
    assert len(cache) == 0
    big = EncodeCache(limit=8)
    big.find("a", lambda: Conditioning(cross=torch.zeros(1, 77, 4)))
    assert len(big) == 0


def test_a_cache_serves_many_threads():
    cache, found = EncodeCache(), []

    def ask():
        found.extend(cache.find(n % 7, lambda n=n: Conditioning(cross=torch.full((1, 1, 1), float(n % 7)))).cross.item() == n % 7
                     for n in range(200))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1600 and all(found) and len(cache) == 7


def test_a_text_that_cannot_be_read_is_a_prompt_error(tower, tokenizer):
    with pytest.raises(PromptError):
        encode("\ud800", [tower], tokenizer)


@pytest.mark.parametrize("prompt, negative", [("a", "b " * 80), ("a " * 160, "b"), ("a", "b"), ("a AND " + "c " * 80, "")])
def test_padding_brings_both_to_one_length_and_leaves_their_own_vectors(tower, tokenizer, prompt, negative):
    def told(padding):
        return encode_program(program(prompt, negative, 4), [tower], tokenizer, padding=padding).at(0)

    parts, against = told("")
    empty = encode("", [tower], tokenizer).cross
    filled, filled_against = told("empty")
    lengths = {cond.cross.shape[1] for cond in (filled_against, *(cond for _, cond in filled))}
    assert lengths == {max(against.cross.shape[1], parts[0][1].cross.shape[1])}
    for short, long in ((against, filled_against), (parts[0][1], filled[0][1])):
        own = short.cross.shape[1]
        assert torch.equal(long.cross[:, :own], short.cross)
        assert torch.equal(long.cross[:, own:], empty.repeat(1, (long.cross.shape[1] - own) // 77, 1))
    old, old_against = told("v0")
    length = parts[0][1].cross.shape[1]
    both = min(length, against.cross.shape[1])
    assert torch.equal(old[0][1].cross, parts[0][1].cross) and old_against.cross.shape[1] == length
    assert torch.equal(old_against.cross[:, :both], against.cross[:, :both])
    assert torch.equal(old_against.cross[:, both:], against.cross[:, -1:].expand(-1, length - both, -1))
