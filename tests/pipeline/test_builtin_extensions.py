"""The extensions that come with Easel, in whole pictures: off changes no bit, on changes the picture and says so under it."""
import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import PngImagePlugin

from modules.checkpoints.residency import Residency
from modules.checkpoints.shelf import Shelf
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from modules.core.progress import Progress
from modules.core.settings import Settings
from modules.extension_loader import load
from modules.pipeline import generate as spine
from modules.pipeline import infotext, provenance, replay
from modules.pipeline.extension import of_text, resolved
from modules.pipeline.request import Request, Resources, Result
from modules.prompts.encode import EncodeCache
from modules.prompts.tokens import Tokenizer
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = load(Paths.of(ROOT), Settings(), disable="extra")
PLAIN = Request(prompt="a cat", seed=1, subseed=0, steps=3, width=128, height=128, sampler="Euler", checkpoint="base.safetensors", vae="None")
ON = ({"Dynamic thresholding": {"enabled": True, "mimic_scale": 3.0}}, {"Guidance": {"rescale": 0.7}}, {"Guidance": {"apg": True}},
      {"Guidance": {"pag": 3.0}}, {"Guidance": {"slg": 3.0}}, {"Guidance": {"sag": 0.75}}, {"FreeU": {"enabled": True}},
      {"Hypertile": {"enabled": True, "tile": 64}})
FIELDS = ({"s_min_uncond": 5.0}, {"s_min_uncond": 5.0, "s_min_uncond_all": True}, {"skip_early_cond": 0.5}, {"token_merging_ratio": 0.5})


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    paths = Paths.of(tmp_path_factory.mktemp("builtin"))
    paths.checkpoints[0].mkdir(parents=True)
    tiny.save_sd1(paths.checkpoints[0] / "base.safetensors")
    models, tokenizer = Residency(Shelf(paths, Hashes(paths.hashes_file)), "cpu", torch.float32), Tokenizer()

    def make(**changes):
        request = dataclasses.replace(PLAIN, **changes)
        request = dataclasses.replace(request, extra=resolved(ENTRIES, request.extra, Settings()))
        result = spine.generate(request, Resources(
            settings=Settings(), models=models, adapters=None, upscalers=None, styles={}, tokenizer=tokenizer, encodings=EncodeCache(),
            extensions=tuple(entry.extension for entry in ENTRIES if entry.extension), progress=Progress(), done=frozenset(),
            deliver=lambda one: one))
        assert result.warnings == ()
        return result.pictures[0]
    return make


def pixels(picture):
    return numpy.asarray(picture.image).tobytes()


@pytest.fixture(scope="module")
def plain(make):
    return pixels(make())


def test_all_are_found_whole_and_short():
    assert [entry.trouble for entry in ENTRIES] == [""] * 4
    for entry in ENTRIES:
        text = (ROOT / "modules" / "extensions-builtin" / entry.folder / "extension.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) < 80


def test_finding_them_loads_nothing_heavy():
    code = (f"import sys; from modules.extension_loader import load; from modules.core.paths import Paths; from modules.core.settings import "
            f"Settings; assert len(load(Paths.of({str(ROOT)!r}), Settings(), disable='extra')) == 4; "
            f"print([name for name in ('torch', 'numpy', 'gradio') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_their_labels_are_each_ones_own_and_no_field_has_them():
    labels = [control.infotext for entry in ENTRIES for control in entry.controls]
    assert len(set(labels)) == len(labels) and not set(labels) & infotext.LABELS and all(map(infotext.is_key, labels))


@pytest.mark.parametrize("extra", ON, ids=lambda extra: "-".join(next(iter(extra.values()))))
def test_on_it_changes_the_picture_tells_so_under_it_and_is_asked_again_by_its_text_and_record(make, plain, extra):
    picture = make(extra=extra)
    assert pixels(picture) != plain
    assert of_text(ENTRIES, infotext.read(picture.infotext).fields) == resolved(ENTRIES, extra, Settings())
    again = provenance.alone(provenance.read(provenance.write(picture.record)))
    assert pixels(make(**{field.name: getattr(again, field.name) for field in dataclasses.fields(again)})) == pixels(picture)


def test_a_text_alone_is_enough_to_make_it_again(make):
    """Without the record, from the labels; what the text gave back is no difference."""
    picture = make(extra={"FreeU": {"enabled": True, "b1": 1.1}})
    file = io.BytesIO()
    picture.image.save(file, "PNG", pnginfo=png_text(picture.infotext))
    asked = []

    def run(request):
        asked.append(request)
        again = make(extra=request.extra)
        made = io.BytesIO()
        again.image.save(made, "PNG")
        return Result(request=request, pictures=(dataclasses.replace(again, file=made.getvalue()),))

    verdict = replay.replay(file.getvalue(), run, lambda kind, name, sha256: name, lambda fields: of_text(ENTRIES, fields))
    assert asked[0].extra == {"FreeU": {"enabled": True, "b1": 1.1}} and verdict.identical and "although" not in verdict.sentence


def png_text(text):
    found = PngImagePlugin.PngInfo()
    found.add_text("parameters", text)
    return found


def test_off_or_at_its_defaults_no_bit_is_another(make, plain):
    off = {"Dynamic thresholding": {"enabled": False, "mimic_scale": 3.0}, "Guidance": {"rescale": 0, "apg_length": 3},
           "FreeU": {"b1": 2.0}, "Hypertile": {"tile": 64}}
    picture = make(extra=off)
    assert pixels(picture) == plain and pixels(make()) == plain
    assert "FreeU" not in picture.infotext and "Hypertile" not in picture.infotext and "Mimic" not in picture.infotext


@pytest.mark.parametrize("changes", FIELDS, ids=lambda changes: "-".join(changes))
def test_a_field_of_guidance_changes_the_picture_and_its_text_gives_it_back(make, plain, changes):
    picture = make(**changes)
    assert pixels(picture) != plain
    found = infotext.fields_of(infotext.read(picture.infotext))
    assert {name: found.get(name) for name in changes} == changes
