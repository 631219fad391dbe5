"""Pictures from a folder, the order of batches, and latents that are encoded once."""
import numpy as np
import pytest
import torch
from PIL import Image

from modules.core.errors import Cancelled, NotFoundError, WebUIError
from modules.training import latents, scratch
from modules.training.checkpoint import vae_of
from modules.training.dataset import Folder, Order, Remembered, Source, bucket_sizes, covering, groups_of, nearest_bucket
from modules.training.diffusion import Captions, FromLatents, FromPictures, predicted
from modules.training.recipe import Recipe
from tests.training.squares import NAMES, Squares


def save(folder, name, size, colour="red", caption=None, **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name, **options)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def test_a_folder_gives_each_picture_with_the_first_line_of_its_text(tmp_path):
    save(tmp_path, "b.png", (64, 64), "blue", "  a blue field, ümlaut \nsecond line")
    save(tmp_path / "deep", "a.jpg", (64, 64), "white")
    (tmp_path / "notes.md").write_text("no picture")
    source = Folder(tmp_path, 64)
    assert isinstance(source, Source) and len(source) == 2
    pixels, caption = source[0]
    assert caption == "a blue field, ümlaut" and source[1][1] == ""
    assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.float32 and pixels[:, 5, 5].tolist() == [-1.0, -1.0, 1.0]


def test_pictures_go_to_the_bucket_of_their_shape(tmp_path):
    for name, size in (("square.png", (300, 300)), ("wide.png", (400, 200)), ("high.png", (100, 205)), ("camera.jpg", (400, 200))):
        exif = Image.Exif()
        if name == "camera.jpg":
            exif[0x0112] = 6                                # held upright
        save(tmp_path, name, size, exif=exif)
    source = Folder(tmp_path, 128, step=32)
    shapes = {source._pictures[n].path.name: tuple(source[n][0].shape[1:]) for n in range(4)}
    assert shapes["square.png"] == (128, 128)
    assert shapes["wide.png"][1] > shapes["wide.png"][0] and shapes["high.png"] == shapes["camera.jpg"] == shapes["wide.png"][::-1]
    assert sorted(map(len, groups_of(source))) == [1, 1, 2]
    assert {tuple(source[n][0].shape) for n in range(4)} != {(3, 128, 128)} == {tuple(Folder(tmp_path, 128, buckets=False)[n][0].shape) for n in range(4)}


@pytest.mark.parametrize("size, step", [(512, 64), (128, 64), (256, 32), (64, 64)])
def test_buckets_are_no_larger_than_the_square_and_come_with_their_turned_ones(size, step):
    found = bucket_sizes(size, step)
    assert (size, size) in found and all(width * height <= size * size for width, height in found)
    assert all((height, width) in found and width % step == height % step == 0 for width, height in found)


def test_the_nearest_bucket_is_that_of_the_aspect_ratio():
    buckets = bucket_sizes(512)
    assert nearest_bucket((2000, 2000), buckets) == (512, 512) and nearest_bucket((512, 384), buckets) == min(
        buckets, key=lambda bucket: abs(bucket[0] / bucket[1] - 4 / 3))


def test_a_picture_covers_its_bucket_and_is_cut_from_the_middle():
    ramp = Image.fromarray(np.arange(200, dtype=np.uint8)[None].repeat(50, 0))
    found = np.asarray(covering(ramp, 100, 50))
    assert found.shape == (50, 100) and found[0, 0] == 50 and found[0, -1] == 149
    assert covering(Image.new("L", (10, 30)), 64, 64).size == (64, 64)


def test_a_folder_without_pictures_and_a_damaged_picture_are_sentences(tmp_path):
    with pytest.raises(NotFoundError, match="no pictures"):
        Folder(tmp_path / "none", 64)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(WebUIError, match=r"x\.png"):
        Folder(tmp_path, 64)
    save(tmp_path, "x.png", (64, 64))
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WebUIError, match="UTF-8"):
        Folder(tmp_path, 64)[0]


def test_pictures_kept_as_bytes_are_the_same_and_drawn_once():
    class Bytes(Squares):
        def __getitem__(self, index, /):
            pixels, caption = super().__getitem__(index)
            return ((pixels + 1) * 127.5).round() / 255.0 * 2.0 - 1.0, caption

    source = Bytes()
    kept = Remembered(source)
    for _ in range(3):
        assert all(torch.allclose(kept[n][0], Bytes()[n][0], atol=1e-6) and kept[n][1] == NAMES[n] for n in range(4))
    assert source.drawn == 4


def test_every_picture_comes_once_in_each_round_and_a_batch_has_one_size():
    order = Order([7, 4], 2, seed=3)
    assert order.per_epoch == 6
    for epoch in range(3):
        found = [order(epoch * 6 + n) for n in range(6)]
        for group, size in enumerate((7, 4)):
            rows = [row for batch in found if batch.group == group for row in batch.rows]
            assert sorted(set(rows)) == list(range(size)) and len(rows) == 2 * -(-size // 2)
        assert all(batch.epoch == epoch and len(batch.rows) == 2 for batch in found)


def test_the_nth_batch_does_not_depend_on_what_was_asked_before():
    order = Order([50], 8, seed=1)
    wanted = [order(n) for n in range(30)]
    assert [Order([50], 8, seed=1)(n) for n in (29, 3, 17)] == [wanted[n] for n in (29, 3, 17)]
    assert Order([50], 8, seed=2)(0) != wanted[0] and wanted[0] != wanted[7]
    assert len(Order([3], 8, seed=0)(0).rows) == 8


@pytest.fixture
def vae(home):
    return vae_of(home / "vae.safetensors").requires_grad_(False)


def test_latents_are_those_of_the_encoder_and_encoded_once(vae, tmp_path):
    source = Squares()
    group, = latents.encoded(source, vae, tmp_path)
    mean, logvar = vae.encode(torch.stack([source[n][0] for n in range(4)]))
    torch.testing.assert_close(group.mean.float(), mean, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(group.logvar.float(), logvar, rtol=2e-3, atol=2e-3)
    assert group.captions == NAMES and group.indices == (0, 1, 2, 3) and group.mean.dtype == torch.float16
    source.drawn = 0
    again, = latents.encoded(source, vae, tmp_path)
    assert source.drawn == 0 and torch.equal(again.mean, group.mean) and torch.equal(again.logvar, group.logvar)


def test_another_vae_another_picture_or_another_size_is_encoded_anew(vae, tmp_path):
    latents.encoded(Squares(), vae, tmp_path)
    changed = Squares()
    changed.identity = lambda index: "new" if index == 2 else f"square {index} 16"
    latents.encoded(changed, vae, tmp_path)
    assert changed.drawn == 1
    larger = Squares(32)
    assert latents.encoded(larger, vae, tmp_path)[0].mean.shape[-1] == 16 and larger.drawn == 4
    vae.encoder.conv_in.weight[0, 0, 0, 0] += 1
    other = Squares()
    latents.encoded(other, vae, tmp_path)
    assert other.drawn == 4
    vae.decoder.conv_in.weight[0, 0, 0, 0] += 1             # the decoder has no part in a latent
    latents.encoded(other, vae, tmp_path)
    assert other.drawn == 4


def test_mirrored_latents_are_latents_of_their_own(vae, tmp_path):
    class Half(Squares):
        def __getitem__(self, index, /):
            pixels, caption = super().__getitem__(index)
            pixels[:, :, :8] = 1.0
            return pixels, caption

    source = Half()
    group, = latents.encoded(source, vae, tmp_path, flip=True)
    assert len(group) == 8 and group.flipped == (False, True) * 4 and group.indices == (0, 0, 1, 1, 2, 2, 3, 3)
    mean, _ = vae.encode(source[1][0].flip(-1)[None])
    torch.testing.assert_close(group.mean[3:4].float(), mean, rtol=2e-3, atol=2e-3)


def test_a_source_without_words_of_its_own_is_known_by_its_pixels(vae, tmp_path):
    class Bare:
        def __init__(self):
            self.inner = Squares()

        def __len__(self):
            return 4

        def __getitem__(self, index, /):
            return self.inner[index]

    one, other = Bare(), Bare()
    latents.encoded(one, vae, tmp_path)
    latents.encoded(other, vae, tmp_path)
    assert (one.inner.drawn, other.inner.drawn) == (8, 4)


def test_stopping_keeps_what_was_encoded(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "AT_ONCE", 2)

    def stop(done, of):
        assert of == 4
        raise Cancelled("stopped")

    source = Squares()
    with pytest.raises(Cancelled):
        latents.encoded(source, vae, tmp_path, check=stop)
    latents.encoded(source, vae, tmp_path)
    assert source.drawn == 4


def test_a_damaged_shard_is_encoded_again(vae, tmp_path):
    latents.encoded(Squares(), vae, tmp_path)
    shard, = tmp_path.rglob("*.safetensors")
    shard.write_bytes(b"x" * 50)
    source = Squares()
    latents.encoded(source, vae, tmp_path)
    assert source.drawn == 4


def test_batches_from_latents_and_from_pictures_are_the_same(vae, tmp_path):
    source, device = Squares(), torch.device("cpu")
    kept = FromLatents(latents.encoded(source, vae, tmp_path), source, 3, 0, device)
    live = FromPictures(source, vae, 3, 0, device)
    for number in range(5):
        one, other = kept(number), live(number)
        assert list(one.captions) == list(other.captions)
        torch.testing.assert_close(one.mean, other.mean, rtol=2e-3, atol=2e-3)


def test_captions_are_read_as_the_published_tower_reads_them():
    """Ids of the published vocabulary: a photo of a cat."""
    from modules.prompts.tokens import Tokenizer
    ids = Captions(Tokenizer(), 49407)(["a photo of a cat", "", "cat " * 100, "(cat:2) [x]"])
    assert ids.shape == (4, 77) and ids[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert ids[1].tolist() == [49406] + [49407] * 76 and ids[2].tolist() == [49406] + [2368] * 75 + [49407]
    assert ids[3, 1] != 2368                                # brackets are words here


@pytest.mark.parametrize("conditioning, channels, text", [("none", 4, 1), ("concat", 7, 1), ("crossattn", 4, 77), ("hybrid", 7, 77)])
def test_a_network_is_told_in_four_ways(conditioning, channels, text):
    seen = {}

    def network(x, t, cross):
        seen.update(channels=x.shape[1], text=cross.shape[1], told=bool(cross.any()), dtype=t.dtype)
        return x

    predicted(network, conditioning, torch.ones(2, 4, 8, 8), torch.tensor([1, 2]), cross=torch.ones(2, 77, 16), concat=torch.ones(2, 3, 8, 8), width=16)
    assert seen == {"channels": channels, "text": text, "told": text == 77, "dtype": torch.float32}


@pytest.mark.parametrize("conditioning", ["none", "concat", "hybrid"])
def test_each_way_of_telling_trains(recipes, tmp_path, conditioning):
    from modules.training.train import train
    from tests.training.squares import Stopping

    class Beside(Squares):
        def concat(self, index):
            return torch.full((3, 8, 8), float(index))

    recipe = recipes("diffusion", objective={"conditioning": conditioning}, unet={"concat_channels": 0 if conditioning == "none" else 3},
                     training={"steps": 1})
    assert train(recipe, folder=tmp_path, progress=Stopping(), data=Beside()).is_file()
    if conditioning != "none":
        with pytest.raises(WebUIError, match="concat"):
            train(recipe, folder=tmp_path / "bare", progress=Stopping(), data=Squares())


def test_networks_from_scratch_are_those_of_their_seed_and_the_unet_says_nothing_yet():
    recipe = Recipe.of({"model": {"vae": "x", "norm_groups": 4}, "unet": {"channels": 16, "multiply": [1], "depths": [1], "res_blocks": 1}})
    made = []
    for seed in (0, 0, 1):
        with scratch.seeded(seed):
            made.append(scratch.unet(recipe, context=8, latent=4))
    assert torch.equal(made[0].input_blocks[0][0].weight, made[1].input_blocks[0][0].weight)
    assert not torch.equal(made[0].input_blocks[0][0].weight, made[2].input_blocks[0][0].weight)
    assert not made[0](torch.ones(1, 4, 8, 8), torch.tensor([5.0]), torch.ones(1, 3, 8)).any()
