"""The size at which a model draws best, and what is told about it: from its header, what lies beside it, and nothing else."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from modules import model_facts
from modules.checkpoints.shelf import Entry
from tests import tiny, tiny_families

ROOT = Path(__file__).resolve().parents[1]


def entry(path):
    return Entry(path=path, name=path.name)


def saved(tmp_path, weights, metadata=None, name="a.safetensors"):
    save_file(weights, tmp_path / name, metadata)
    return entry(tmp_path / name)


@pytest.fixture
def sizes(tmp_path):
    return model_facts.NativeSizes(tmp_path / "cache")


@pytest.mark.parametrize("family, metadata, size", [
    ("SD1", None, 512), ("SD2", None, 512), ("SD2", {"modelspec.prediction_type": "v"}, 768), ("SDXL", None, 1024), ("LDM cin256", None, 256),
    ("SDXL", {"easel.native_size": "128"}, 128), ("SD1", {"modelspec.resolution": "640x448"}, (640, 448)),
    ("SD1", {"modelspec.resolution": "7x9999999"}, 512), ("SDXL", {"modelspec.resolution": "large"}, 1024),
])
def test_the_metadata_say_the_size_and_the_family_where_they_do_not(tmp_path, sizes, family, metadata, size):
    made = saved(tmp_path, tiny_families.FAMILIES[family](), metadata)
    assert sizes.of(made) == (size if isinstance(size, tuple) else (size, size))


def test_what_is_no_model_has_no_size(tmp_path, sizes):
    tiny.save_vae(tmp_path / "vae.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    assert sizes.of(entry(tmp_path / "vae.safetensors")) is None and sizes.of(entry(tmp_path / "broken.safetensors")) is None
    assert sizes.of(entry(tmp_path / "gone.safetensors")) is None


def test_a_size_is_found_again_until_the_file_or_what_lies_beside_it_changes(tmp_path, sizes):
    made = saved(tmp_path, tiny_families.sd2())
    assert sizes.of(made) == (512, 512)
    assert model_facts.NativeSizes(tmp_path / "cache").of(made) == (512, 512)
    (tmp_path / "a.yaml").write_text("model:\n  params:\n    parameterization: v\n")
    assert model_facts.NativeSizes(tmp_path / "cache").of(made) == (768, 768)
    save_file(tiny_families.sdxl(), made.path)
    os.utime(made.path, ns=(1, 1))
    assert sizes.of(made) == (1024, 1024)


@pytest.mark.parametrize("text", ["", "[]", '{"x": 1}', "\xff", '{"PATH": [1, 2, 3, 4, 5, true]}', '{"PATH": [1, 2, "3", 4, 5, 6]}'])
def test_a_broken_cache_is_an_empty_one(tmp_path, sizes, text):
    made = saved(tmp_path, tiny_families.FAMILIES["LDM cin256"]())
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / model_facts.CACHE).write_text(text.replace("PATH", str(made.path)), encoding="latin-1")
    assert sizes.of(made) == (256, 256)


def test_a_size_that_is_known_is_told_without_torch(tmp_path, sizes):
    sizes.of(saved(tmp_path, tiny_families.FAMILIES["LDM cin256"]()))
    code = ("import sys; from pathlib import Path; from modules.model_facts import NativeSizes; from modules.checkpoints.shelf import Entry;"
            f"print(NativeSizes(Path({str(tmp_path / 'cache')!r})).of(Entry(path=Path({str(tmp_path / 'a.safetensors')!r}), name='a')),"
            "'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(256, 256) False", done.stderr


def test_what_lies_beside_a_model_is_told_with_it_and_the_header_stands_in(tmp_path):
    made = saved(tmp_path, tiny_families.sdxl(), {"modelspec.trigger_phrase": "in oils", "modelspec.description": "Paints."})
    told = model_facts.info(made)
    assert (told.trigger_words, told.description, told.preview, told.fault) == ("in oils", "Paints.", None, "")
    assert told.described.family == "SDXL" and told.described.prediction == "eps" and told.described.guessed
    (tmp_path / "a.json").write_text(json.dumps({"activation text": "tempera", "notes": "mine", "description": "Old.", "vae": "soft"}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    told = model_facts.info(made)
    assert (told.trigger_words, told.notes, told.description, told.preferred_vae) == ("tempera", "mine", "Old.", "soft")
    assert told.preview == tmp_path / "a.png"


def test_a_fault_is_part_of_what_is_told(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    told = model_facts.info(entry(tmp_path / "broken.safetensors"))
    assert told.described is None and "broken.safetensors" in told.fault
    tiny.save_vae(tmp_path / "vae.safetensors")
    assert "VAE" in model_facts.info(entry(tmp_path / "vae.safetensors")).fault
