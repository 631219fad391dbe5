"""An embedding in a prompt: another picture, named in its text and record, made again while the file is the same."""
import pytest
import torch

from modules.core.hashing import Hashes
from modules.core.paths import Paths
from modules.engine import Engine
from modules.imaging import metadata, save
from modules.pipeline import infotext
from modules.pipeline.request import Request
from tests import tiny

ASKED = Request(prompt="a boat, [ti-learned:x:0.5]", negative_prompt="ti-wide", seed=11, steps=2, width=64, height=64)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    paths = Paths.of(tmp_path_factory.mktemp("embeddings"))
    for folder in (paths.checkpoints[0], paths.embeddings):
        folder.mkdir(parents=True)
    tiny.save_sd1(paths.checkpoints[0] / "tiny.safetensors", mult=(1, 1, 1, 1), text_layers=2)
    made = Engine(paths)
    yield made
    made.close()


def test_it_changes_the_picture_and_is_told(engine):
    def result():
        return engine.submit(ASKED, save=False).result(120)

    plain = result()
    file = engine.paths.embeddings / "ti-learned.pt"
    torch.save({"<x>": torch.randn(2, 64, generator=torch.Generator().manual_seed(1))}, file)
    torch.save({"<x>": torch.ones(2, 32)}, engine.paths.embeddings / "ti-wide.pt")
    made = result()
    (picture,) = made.pictures
    digest = Hashes(engine.paths.data / "h").sha256(file)
    read = infotext.read(picture.infotext)
    assert read.fields["TI hashes"] == f"ti-learned: {digest[:12]}" and not infotext.leftovers(read)
    assert picture.record["files"] == [{"kind": "embedding", "name": "ti-learned", "sha256": digest, "weight": 1}]
    assert any("ti-wide" in sentence and "32 numbers" in sentence for sentence in made.warnings) and not plain.warnings
    assert picture.image.tobytes() != plain.pictures[0].image.tobytes() and plain.pictures[0].record["files"] == []
    assert engine.tools.replay(picture.file).state == "identical"
    without = save.encode(metadata.pixels(picture.file), picture.infotext, "", "png")
    assert engine.tools.replay(without).state == "identical"
    loaded, skipped = engine.tools.embeddings()
    assert list(loaded) == ["ti-learned"] and list(skipped) == ["ti-wide"]
    assert engine.tools.token_count("ti-learned") == (2, 75)

    torch.save({"<x>": torch.ones(2, 64)}, file)
    verdict = engine.tools.replay(picture.file)
    assert (verdict.state, verdict.first_difference) == ("different", "file hash: ti-learned")
    verdict = engine.tools.replay(without)
    assert (verdict.state, verdict.first_difference) == ("different", "file hash: ti")
    file.unlink()
    assert result().pictures[0].image.tobytes() == plain.pictures[0].image.tobytes()
