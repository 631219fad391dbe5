"""A second checkpoint takes over at its level: which steps it takes, what it is told, what the text and the record say of it."""
import pytest
import torch
from safetensors.torch import save_file

from modules.checkpoints.residency import Residency
from modules.checkpoints.shelf import Shelf
from modules.core.errors import RequestError
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from modules.core.progress import Progress
from modules.core.settings import Settings
from modules.pipeline import generate as spine
from modules.pipeline import infotext
from modules.pipeline.request import Request, Resources
from modules.pipeline.start import ladder
from modules.prompts.encode import EncodeCache
from modules.prompts.tokens import Tokenizer
from tests import tiny, tiny_families


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A shelf with base, refiner and a model of other latents; one residency for all tests."""
    paths = Paths.of(tmp_path_factory.mktemp("refiner"))
    paths.make()
    home = paths.checkpoints[0]
    small = {"mult": (1, 1, 1, 1), "text_layers": 2}
    tiny.save_sd1(home / "base.safetensors", seed=1, **small)
    tiny.save_sd1(home / "second.safetensors", seed=2, text_width=32, **small)
    save_file(tiny_families.ldm_class(classes=1001), home / "classes.safetensors")
    return Residency(Shelf(paths, Hashes(paths.hashes_file)), "cpu", torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def made(models, tokenizer, **changes):
    request = Request(**{"prompt": "a cat", "seed": 1, "subseed": 0, "steps": 10, "width": 64, "height": 64, "sampler": "Euler",
                         "scheduler": "Karras", "checkpoint": "base.safetensors", "vae": "None", **changes})
    return spine.generate(request, Resources(
        settings=Settings(), models=models, adapters=None, upscalers=None, styles={}, tokenizer=tokenizer, encodings=EncodeCache(),
        extensions=(), progress=Progress(), done=frozenset(), deliver=lambda one: one))


def counted(models, name, calls):
    """Every call of this model's U-Net leaves its name and index in `calls`."""
    with models.borrow(name, "None") as model:
        return model.unet.register_forward_hook(lambda module, args, output: calls.append((name, float(args[1][0]))))


@pytest.mark.parametrize("at", [0.3, 0.5, 0.8])
def test_it_takes_the_steps_from_its_level_on_and_none_before(models, tokenizer, at):
    calls = []
    models._limit = lambda: 2
    hooks = [counted(models, name, calls) for name in ("base.safetensors", "second.safetensors")]
    made(models, tokenizer, refiner="second.safetensors", refiner_switch_at=at)
    for hook in hooks:
        hook.remove()
    with models.borrow("base.safetensors", "None") as model:
        sigmas = ladder(Request(steps=10, sampler="Euler", scheduler="Karras"), model)[:-1]
        nearest = [int((model.prediction.sigmas - sigma).abs().argmin()) for sigma in sigmas]
    expected = ["second.safetensors" if (999 - index) / 1000 >= at else "base.safetensors" for index in nearest]
    assert [name for name, _ in calls] == expected and len(set(expected)) == 2


def test_a_switch_at_the_very_end_is_none_and_one_at_the_beginning_is_all(models, tokenizer):
    plain, other = (made(models, tokenizer, checkpoint=f"{name}.safetensors").pictures[0].image.tobytes() for name in ("base", "second"))
    never = made(models, tokenizer, refiner="second.safetensors", refiner_switch_at=1.0).pictures[0]
    assert never.image.tobytes() == plain and "Refiner" not in never.infotext
    always = made(models, tokenizer, refiner="second.safetensors", refiner_switch_at=0.0, vae="None").pictures[0]
    assert always.image.tobytes() not in (plain, other)     # its U-Net and its words, the first one's VAE
    assert made(models, tokenizer, refiner="base.safetensors").pictures[0].image.tobytes() == plain


def test_the_text_and_the_record_name_it(models, tokenizer):
    picture = made(models, tokenizer, refiner="second.safetensors", refiner_switch_at=0.6, n_iter=2).pictures[1]
    fields = infotext.fields_of(infotext.read(picture.infotext))
    with models.borrow("second.safetensors", "None") as model:
        digest = model.sha256
    assert fields["refiner"] == f"second [{digest[:10]}]" and fields["refiner_switch_at"] == 0.6
    assert picture.record["refiner"] == {"name": "second", "sha256": digest}


def test_a_refiner_of_other_latents_is_refused_by_name(models, tokenizer):
    with pytest.raises(RequestError, match="classes"):
        made(models, tokenizer, refiner="classes.safetensors", refiner_switch_at=0.5)
