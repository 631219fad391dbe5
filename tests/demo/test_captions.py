"""Captions are read back by an independent reader: every content word must be true of the layout, every adjective of its own thing."""
import random
import re
from itertools import pairwise

import numpy as np
import pytest

from modules.demo import captions
from modules.demo.captions import WORDS, caption, prompt_for, spoiled
from modules.demo.scenes import KINDS, draw, draw_layout
from modules.prompts.tokens import Tokenizer


def facts_of(table):
    """word -> facts that a phrase with this word states."""
    found = {}
    for fact, phrases in table.items():
        for phrase in phrases:
            for word in phrase.split():
                found.setdefault(word, set()).add(fact)
    return {word: facts for word, facts in found.items() if word in WORDS}


KIND, COLOUR, SIZE, PLACE = (facts_of(table) for table in (captions.KIND_WORDS, captions.COLOUR_WORDS, captions.SIZE_WORDS, captions.PLACE_WORDS))
SKY, WEATHER, SUN, GROUND, STYLE = (
    facts_of(table) for table in (captions.SKY_WORDS, captions.WEATHER_WORDS, captions.SUN_WORDS, captions.GROUND_WORDS, captions.STYLE_WORDS))
PRAISE = {word for phrase in captions.PRAISE for word in phrase.split()}


def errors(text, layout):
    """Words of the text that are false of the layout, or that no table knows."""
    wrong, adjectives, last, praised = [], [], None, PRAISE
    for word in re.findall(r"[a-z0-9]+", text):
        if word in COLOUR or word in SIZE:
            adjectives.append(word)
        elif word in KIND:
            things = [thing for thing in layout.objects if thing.kind in KIND[word]]
            last = things[0] if things else None
            wrong += [] if last else [word]
            wrong += [a for a in adjectives if last and last.colour not in COLOUR.get(a, ()) and last.size not in SIZE.get(a, ())]
            adjectives = []
        elif word in PLACE:
            wrong += [] if last and last.place in PLACE[word] else [word]
        elif word in WORDS:
            true = (layout.sky in SKY.get(word, ()) or layout.weather in WEATHER.get(word, ()) or layout.ground in GROUND.get(word, ())
                    or layout.style in STYLE.get(word, ()) or (layout.weather == "clear" and layout.sky in SUN.get(word, ())) or word in praised)
            wrong += [] if true else [word]
        elif word not in captions.GRAMMAR:
            wrong.append(word)
    return wrong + adjectives


def test_captions_state_only_true_facts():
    rng = random.Random(4)
    for _ in range(4000):
        layout = draw_layout(rng)
        text = caption(layout, rng)
        assert text == text.strip() and not errors(text, layout), (text, layout)


def test_the_reader_of_this_test_finds_lies():
    """Most captions must be false of most other layouts, or the test above would say nothing."""
    rng = random.Random(5)
    layouts = [draw_layout(rng) for _ in range(400)]
    lies = [bool(errors(caption(one, rng), other)) for one, other in pairwise(layouts)]
    assert np.mean(lies) > 0.95


def test_captions_are_long_and_short_and_start_in_many_ways():
    rng = random.Random(6)
    texts = [caption(draw_layout(rng), rng) for _ in range(1000)]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 2 and max(lengths) >= 18 and len({text.split()[0] for text in texts}) > 60
    tokens = Tokenizer()
    assert max(len(tokens.ids(text)) for text in texts) <= 75


def test_at_least_sixty_content_words_are_used():
    rng = random.Random(7)
    used = {word for _ in range(6000) for word in caption(draw_layout(rng), rng).replace(",", "").split()} & WORDS
    spoil = {word for phrases in captions.SPOILED_WORDS.values() for phrase in phrases for word in phrase.split()} - captions.GRAMMAR
    assert len(used) >= 60 and used | spoil == WORDS


def test_clip_knows_the_words():
    tokens = Tokenizer()
    lengths = {word: len(tokens.ids(word)) for word in WORDS}
    assert max(lengths.values()) <= 3 and np.mean(list(lengths.values())) < 1.2
    assert all(len(tokens.ids(kind)) == 1 for kind in KINDS)


def test_no_word_states_two_facts_of_one_table():
    for table in (KIND, COLOUR, SIZE, SKY, WEATHER, GROUND):
        assert all(len(facts) == 1 for facts in table.values()), table


def test_the_plain_prompt_names_everything_and_is_true(layouts):
    for layout in layouts:
        text = prompt_for(layout)
        assert not errors(text, layout)
        for thing in layout.objects:
            assert f"{thing.size} {thing.colour} {thing.kind}" in text and captions.PLACE_WORDS[thing.place][0] in text
        assert captions.SKY_WORDS[layout.sky][0] in text and captions.GROUND_WORDS[layout.ground][0] in text


def sharpness(image):
    return np.abs(np.diff(np.asarray(image, np.float64), axis=1)).mean()


@pytest.mark.parametrize("fault, worse", [
    ("blur", lambda was, now: sharpness(now) < 0.7 * sharpness(was)), ("noise", lambda was, now: sharpness(now) > 2 * sharpness(was)),
    ("dark", lambda was, now: np.mean(now) < 0.45 * np.mean(was)), ("fade", lambda was, now: np.std(now) < 0.55 * np.std(was)),
    ("blocks", lambda was, now: len(np.unique(np.asarray(now).reshape(-1, 3), axis=0)) <= 26 * 26)])
def test_a_spoiled_picture_has_the_fault_that_its_word_names(layouts, fault, worse):
    words = captions.SPOILED_WORDS[fault]
    image, found = draw(layouts[0], 128).image, 0
    for seed in range(60):
        now, word = spoiled(image, random.Random(seed))
        again, _ = spoiled(image, random.Random(seed))
        assert now.size == image.size and now.mode == "RGB" and now.tobytes() == again.tobytes()
        if word in words:
            found += 1
            assert worse(image, now), seed
    assert found > 3
