"""A prompt with wildcards: each picture's own words, told in its text, and the same picture again without the files."""
import shutil

import pytest

from modules.core.errors import PromptError
from modules.core.paths import Paths
from modules.engine import Engine
from modules.imaging import metadata, save
from modules.pipeline import infotext
from modules.pipeline.plan import plan
from modules.pipeline.request import Request
from modules.prompts import grammar
from modules.prompts.wildcards import Nothing
from tests import tiny

ASKED = Request(prompt="a {red|blue|green|grey} __animals__ # {x|y", negative_prompt="{fog|rain|snow}", seed=3, steps=2, width=64, height=64,
                batch_size=4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    paths = Paths.of(tmp_path_factory.mktemp("wildcards"))
    paths.checkpoints[0].mkdir(parents=True)
    paths.wildcards.mkdir(parents=True)
    (paths.wildcards / "animals.txt").write_text("cat\ndog # barks\nhen\ncow\n")
    tiny.save_sd1(paths.checkpoints[0] / "tiny.safetensors", mult=(1, 1, 1, 1), text_layers=2)
    made = Engine(paths)
    yield made
    made.close()


def test_each_picture_has_its_own_words_and_is_the_same_again_without_the_files(engine):
    pictures = engine.submit(ASKED, save=False).result(120).pictures
    assert len({one.prompt for one in pictures}) > 1
    shutil.rmtree(engine.paths.wildcards)
    for one in pictures:
        read = infotext.read(one.infotext)
        assert (read.prompt.split(), read.negative_prompt) == (one.prompt.split(), one.negative_prompt)
        assert read.fields["Template"] == grammar.without_comments(ASKED.prompt) and read.fields["Negative Template"] == ASKED.negative_prompt
        assert not infotext.leftovers(read)
        assert engine.tools.replay(one.file).state == "identical"
        assert engine.tools.read_picture(one.file).request["prompt"] == one.prompt
    alone = save.encode(metadata.pixels(pictures[1].file), pictures[1].infotext, "", "png")
    assert engine.tools.replay(alone).state == "identical"
    with pytest.raises(PromptError, match="__animals__"):
        engine.submit(ASKED, save=False).result(120)


def test_what_a_wildcard_chooses_counts_as_written_there():
    asked = Request(prompt="x <lora:{a|b}:1>", seed=0, batch_size=8)
    batches = list(plan(asked, {}, (), frozenset(), Nothing()))
    slots = [slot for batch in batches for slot in batch.slots]
    assert [slot.index for slot in slots] == list(range(8)) and {slot.text for slot in slots} == {"x "}
    assert all(slot.uses == batch.uses for batch in batches for slot in batch.slots)
    assert {batch.uses[0].args[0] for batch in batches} == {"a", "b"}
    rest = [slot for batch in plan(asked, {}, (), frozenset({0, 3}), Nothing()) for slot in batch.slots]
    assert rest == [slot for slot in slots if slot.index not in (0, 3)]


def test_a_prompt_without_a_choice_is_planned_as_ever():
    (batch,) = plan(Request(prompt="a {cat} [x|y]", seed=1, batch_size=2), {}, (), frozenset())
    assert [(slot.prompt, slot.templates) for slot in batch.slots] == [("a {cat} [x|y]", ())] * 2
