"""The text tower learns what captions say, and what it is told is true."""
import torch

from modules.demo import captions, reading, scenes
from modules.demo.recipe import STRANGERS
from modules.prompts.tokens import Tokenizer
from modules.training import scratch
from modules.training.recipe import Model, Recipe, TextSizes


def test_the_facts_of_a_scene_are_all_of_its_layout_and_nothing_else():
    thing = scenes.Object("boat", "red", "big", "left")
    layout = scenes.Layout("night", "fog", "sea", (thing,), "ink", seed=1)
    told = reading.facts_of(layout, captions.SPOILED_WORDS["blur"][1])
    assert {fact for fact, value in zip(reading.FACTS, told, strict=True) if value} == {
        "boat", "boat red", "boat big", "boat left", "red left", "sky night", "weather fog", "ground sea", "style ink", "fault blur"}


def test_lessons_are_the_same_by_number_and_never_of_a_held_out_scene(monkeypatch):
    seen = []
    monkeypatch.setattr(reading, "facts_of", lambda layout, said="": seen.append(layout) or torch.zeros(1))
    said = [reading.lesson(number, STRANGERS, 0.5, 0.5)[0] for number in range(40)]
    assert said == [reading.lesson(number, STRANGERS, 0.5, 0.5)[0] for number in range(40)] and len(set(said)) > 35
    assert not any(scenes.held_out(layout) for layout in seen)


def test_a_small_tower_reads_better_after_a_few_steps_and_the_same_way_each_time(monkeypatch):
    monkeypatch.setattr(reading, "BATCH", 16)

    def taught():
        with scratch.seeded(3):
            text = scratch.text(Recipe(kind="diffusion", model=Model(vae="none"), text=TextSizes(width=32, layers=1)))
        return text, reading.teach(text, Tokenizer(), steps=40, strangers=STRANGERS)

    (first, losses), (second, again) = taught(), taught()
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]) and losses == again
    ids = torch.tensor([[49406, 736, 49407] + [49407] * 5])
    assert torch.equal(first.encode(ids)[0], second.encode(ids)[0])
