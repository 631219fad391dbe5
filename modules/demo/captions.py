"""What a scene says in words: a grammar with synonyms and free order that may leave facts out but never states a wrong one.

Each content word stands in one table below beside the fact it states, so that a caption can be read back.
"""
from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFilter

from modules.demo.scenes import Layout, Object

Words = Mapping[str, tuple[str, ...]]
KIND_WORDS: Words = MappingProxyType({
    "house": ("house", "cottage", "home"), "tree": ("tree",), "boat": ("boat", "sailboat", "ship"), "car": ("car", "automobile"),
    "cat": ("cat", "kitten", "kitty"), "dog": ("dog", "puppy"), "bird": ("bird", "sparrow"), "balloon": ("balloon",),
    "flower": ("flower", "blossom"), "fish": ("fish",), "castle": ("castle", "palace"), "mushroom": ("mushroom", "toadstool"),
    "lighthouse": ("lighthouse",), "star": ("star",), "kite": ("kite",), "butterfly": ("butterfly",), "duck": ("duck", "duckling"),
})
COLOUR_WORDS: Words = MappingProxyType({
    "red": ("red", "scarlet", "crimson"), "orange": ("orange",), "yellow": ("yellow",), "green": ("green", "emerald"), "blue": ("blue",),
    "purple": ("purple", "violet"), "pink": ("pink",), "white": ("white",), "black": ("black",), "brown": ("brown",),
})
SIZE_WORDS: Words = MappingProxyType({"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")})
PLACE_WORDS: Words = MappingProxyType({
    "left": ("on the left", "at the left", "to the left", "on the left side"),
    "right": ("on the right", "at the right", "to the right", "on the right side"),
    "middle": ("in the middle", "in the center", "in the centre"),
})
SKY_WORDS: Words = MappingProxyType({
    "dawn": ("at dawn", "at sunrise", "early in the morning", "morning sky"),
    "day": ("during the day", "at noon", "by day", "in daylight", "daytime"),
    "sunset": ("at sunset", "at dusk", "in the evening", "evening sky"), "night": ("at night", "at midnight", "night sky", "by night"),
})
WEATHER_WORDS: Words = MappingProxyType({
    "clear": ("clear sky", "cloudless"), "cloudy": ("clouds", "cloudy sky", "fluffy clouds"),
    "rain": ("rain", "raining", "rainy", "in the rain"),
    "snow": ("snowing", "snowfall", "snowflakes", "falling snowflakes"), "fog": ("fog", "foggy", "mist", "misty"),
    "rainbow": ("rainbow", "a rainbow", "under a rainbow"),
})
SUN_WORDS: Words = MappingProxyType({
    "dawn": ("rising sun", "sunlight"), "day": ("sun", "sunny", "sunshine"), "sunset": ("setting sun",),
    "night": ("moon", "moonlight", "stars", "starry sky"),
})
GROUND_WORDS: Words = MappingProxyType({
    "meadow": ("in a meadow", "on the grass", "on a lawn", "grassland"), "sea": ("on the sea", "on the ocean", "over the water", "waves"),
    "desert": ("in the desert", "among dunes", "dunes"), "snow": ("in a winter landscape", "in winter", "on snowy ground", "snowy field"),
    "forest": ("in a forest", "in the woods", "forest clearing"), "mountains": ("in the mountains", "mountain range", "among peaks"),
    "beach": ("on the beach", "on the shore", "seaside", "at the coast"), "lavender": ("in a lavender field", "among lavender", "lavender"),
    "road": ("on a road", "at the roadside", "by the street", "on the highway"),
})
STYLE_WORDS: Words = MappingProxyType({
    "plain": ("illustration", "storybook illustration", "picture", "cartoon"), "paper": ("paper cutout", "papercut", "paper collage"),
    "watercolour": ("watercolor", "watercolour", "watercolor painting", "aquarelle"),
    "pastel": ("pastel drawing", "pastel", "soft pastels"),
    "ink": ("ink drawing", "ink outlines", "comic"),
})
SPOILED_WORDS: Words = MappingProxyType({
    "blur": ("blurry", "blurred", "unsharp"), "noise": ("noisy", "grainy"), "dark": ("dark", "underexposed"),
    "fade": ("faded", "pale", "washed out"),
    "blocks": ("pixelated", "lowres"),
})
PRAISE = ("beautiful", "cute", "charming", "lovely", "detailed", "masterpiece", "best quality", "cozy", "whimsical", "sharp", "colorful")
GRAMMAR = frozenset("a an and the of on in at to by with is there it side during under over among field sky early out".split())

TABLES = (KIND_WORDS, COLOUR_WORDS, SIZE_WORDS, PLACE_WORDS, SKY_WORDS, WEATHER_WORDS, SUN_WORDS, GROUND_WORDS, STYLE_WORDS, SPOILED_WORDS)
PHRASES = (*PRAISE, *(phrase for table in TABLES for phrases in table.values() for phrase in phrases))
WORDS = frozenset(word for phrase in PHRASES for word in phrase.split()) - GRAMMAR


def caption(layout: Layout, rng: random.Random) -> str:
    """True words about the layout: all of its facts, a part of them, or two words only, in one of several orders."""
    mood = rng.random()
    objects = list(layout.objects)
    rng.shuffle(objects)
    if mood < 0.08:                                         # short: "red boat"
        return _noun(objects[0], rng, size=False)
    if mood < 0.14:                                         # only the world around
        facts = _surroundings(layout, rng, 0.8) or [_pick(GROUND_WORDS, layout.ground, rng)]
        return _joined(facts, rng)
    things = [_phrase(thing, rng, 0.9, 0.6, 0.85) for thing in objects]
    if len(things) == 2 and rng.random() < 0.08:
        things.pop()
    facts = _surroundings(layout, rng, 0.85)
    style = _pick(STYLE_WORDS, layout.style, rng) if rng.random() < (0.4 if layout.style == "plain" else 0.7) else ""
    praise = [rng.choice(PRAISE)] if rng.random() < 0.12 else []
    if rng.random() < 0.5:                                  # tags between commas, in any order
        parts = [*things, *facts, *([style] if style else []), *praise]
        rng.shuffle(parts)
        return ", ".join(parts)
    said = rng.choice((" and ", " and ", " with ", ", ")).join(things)
    opening = rng.choice((f"{_article(style)} of ", f"{style}, ")) if style else rng.choice(("", "", "there is "))
    if facts and rng.random() < 0.3:
        first = facts.pop(rng.randrange(len(facts)))
        said = f"{first}, {said}" if not opening.strip().endswith(("of", "is")) else f"{said}, {first}"
    flows = bool(facts) and facts[0].split()[0] in GRAMMAR - {"early"} and rng.random() < 0.7
    return opening + said + (" " if flows else ", " if facts else "") + ", ".join(facts) + "".join(f", {word}" for word in praise)


def prompt_for(layout: Layout) -> str:
    """The plain full prompt: style, each thing with size, colour and place, ground, time of day, weather."""
    things = " and ".join(f"a {thing.size} {thing.colour} {thing.kind} {PLACE_WORDS[thing.place][0]}" for thing in layout.objects)
    style = STYLE_WORDS[layout.style][0]
    facts = (GROUND_WORDS[layout.ground][0], SKY_WORDS[layout.sky][0], WEATHER_WORDS[layout.weather][0])
    return f"{_article(style)} of {things} {', '.join(facts)}"


def fault(rng: random.Random) -> str:
    """The word for the fault that `spoiled` makes when it is given this generator in this state."""
    return rng.choice(SPOILED_WORDS[rng.choice(tuple(SPOILED_WORDS))])


def spoiled(image: Image.Image, rng: random.Random) -> tuple[Image.Image, str]:
    """The picture blurred, noisy, dark, faded or in blocks, and the word that says so, for captions that give negatives a meaning."""
    kind = rng.choice(tuple(SPOILED_WORDS))
    word = rng.choice(SPOILED_WORDS[kind])
    size = image.width
    pixels = np.asarray(image.convert("RGB"), np.float64)
    if kind == "blur":
        worse = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.018, 0.035) * size))
    elif kind == "blocks":
        few = max(8, size // rng.choice((5, 6, 8)))
        worse = image.resize((few, few), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)
    else:
        if kind == "noise":
            grain = np.random.RandomState(rng.randrange(2 ** 32)).standard_normal(pixels.shape)
            pixels = pixels + grain * rng.uniform(22, 40)
        elif kind == "dark":
            pixels = pixels * rng.uniform(0.25, 0.4)
        else:
            pixels = pixels + (225 - pixels) * rng.uniform(0.6, 0.75)
        worse = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return worse, word


def _pick(table: Words, fact: str, rng: random.Random) -> str:
    """The first word half of the time, so that the plain word is learnt best."""
    return table[fact][0] if rng.random() < 0.5 else rng.choice(table[fact])


def _article(words: str) -> str:
    if words.split()[-1] in ("outlines", "pastels") or words == "comic":
        return {"comic": "a comic"}.get(words, words)
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def _noun(thing: Object, rng: random.Random, size: bool) -> str:
    words = [_pick(SIZE_WORDS, thing.size, rng)] if size else []
    return " ".join([*words, _pick(COLOUR_WORDS, thing.colour, rng), _pick(KIND_WORDS, thing.kind, rng)])


def _phrase(thing: Object, rng: random.Random, colour: float, size: float, place: float) -> str:
    """A noun phrase that states colour, size and place with these chances."""
    words = [_pick(SIZE_WORDS, thing.size, rng)] if rng.random() < size else []
    words += [_pick(COLOUR_WORDS, thing.colour, rng)] if rng.random() < colour else []
    noun = " ".join([*words, _pick(KIND_WORDS, thing.kind, rng)])
    noun = rng.choice((_article(noun), _article(noun), "the " + noun, noun))
    return f"{noun} {_pick(PLACE_WORDS, thing.place, rng)}" if rng.random() < place else noun


def _surroundings(layout: Layout, rng: random.Random, chance: float) -> list[str]:
    """Ground, time of day, weather and sun, each stated with this chance, in any order."""
    facts = [_pick(GROUND_WORDS, layout.ground, rng)] if rng.random() < chance else []
    facts += [_pick(SKY_WORDS, layout.sky, rng)] if rng.random() < chance else []
    facts += [_pick(WEATHER_WORDS, layout.weather, rng)] if rng.random() < (0.3 if layout.weather == "clear" else chance) else []
    if layout.weather == "clear" and rng.random() < 0.25:
        facts.append(rng.choice(SUN_WORDS[layout.sky]))
    rng.shuffle(facts)
    return facts


def _joined(facts: list[str], rng: random.Random) -> str:
    return rng.choice((", ", " and ")).join(facts)
