"""Pixels are always saved; the same picture and texts give the same bytes; no file is ever overwritten."""
import io
import random
import struct
import threading
from datetime import datetime

import piexif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modules.core.errors import PathError, SaveError, WebUIError
from modules.core.paths import safe_name
from modules.imaging import metadata, names, save
from modules.imaging.names import Naming, expand

PICTURE = Image.frombytes("RGB", (32, 24), random.Random(1).randbytes(32 * 24 * 3))
NOW = datetime(2024, 3, 9, 14, 5, 6)
FACTS = Naming(now=NOW, seed=5, prompt="a cat, (red:1.2)", steps=20, cfg_scale=7.0, sampler="Euler a", scheduler="Automatic", width=512,
               height=768, model_name="v1-5", generation_number=3)


def chunks_of(data):
    place, found = 8, []
    while place < len(data):
        length, = struct.unpack(">I", data[place:place + 4])
        found.append((data[place + 4:place + 8], data[place + 8:place + 8 + length]))
        place += 12 + length
    return found


@pytest.mark.parametrize("format", ["png", "jpg", "jpeg", "webp"])
def test_the_same_picture_and_texts_give_the_same_bytes(format):
    other = PICTURE.copy()
    other.info["dpi"] = (300, 300)
    other.info["exif"] = b"leak"
    assert save.encode(PICTURE, "a", "{}", format) == save.encode(other, "a", "{}", format)


def test_the_file_is_the_same_after_it_was_decoded_and_encoded_again():
    data = save.encode(PICTURE, "a 猫", "{}")
    assert save.encode(Image.open(io.BytesIO(data)), "a 猫", "{}") == data


def test_a_latin_text_is_a_text_chunk_and_any_other_an_international_one():
    assert (b"tEXt", b"parameters\0caf\xe9\nx") in chunks_of(save.encode(PICTURE, "café\nx"))
    kinds = [kind for kind, body in chunks_of(save.encode(PICTURE, "猫", '{"easel":1}'))]
    assert kinds[:3] == [b"IHDR", b"iTXt", b"iTXt"] and b"tEXt" not in kinds
    assert chunks_of(save.encode(PICTURE, "", '{"easel":1}'))[1] == (b"iTXt", b'easel\0\0\0\0\0{"easel":1}')


def test_pillow_reads_the_parameters_as_a1111_does():
    assert Image.open(io.BytesIO(save.encode(PICTURE, "猫: é"))).info["parameters"] == "猫: é"


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_the_user_comment_is_unicode_and_big_endian_and_piexif_reads_it(format):
    data = save.encode(PICTURE, "Steps: 猫", '{"easel":1}', format)
    comment = piexif.load(Image.open(io.BytesIO(data)).info["exif"])["Exif"][piexif.ExifIFD.UserComment]
    assert comment == bytes.fromhex("554E49434F444500") + "Steps: 猫".encode("utf-16-be")


def test_no_text_means_no_metadata():
    assert [kind for kind, body in chunks_of(save.encode(PICTURE))] == [b"IHDR", b"IDAT", b"IEND"]
    assert b"Exif" not in save.encode(PICTURE, format="jpg") + save.encode(PICTURE, format="webp")


def test_the_pixels_of_a_png_are_the_picture():
    assert metadata.pixels(save.encode(PICTURE, "a", "{}")).tobytes() == PICTURE.tobytes()


def noise(length, seed=0):
    return "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyzäöü猫", k=length))


@pytest.mark.parametrize("text, record, kept_text, kept_record", [
    (noise(80_000), '{"a":1}', False, True), (noise(20_000), noise(200_000), True, False), (noise(80_000), noise(200_000), False, False),
    (noise(20_000), noise(10_000), True, True), (noise(80_000), "", False, False), ("", noise(200_000), False, False)])
def test_texts_too_long_for_a_jpeg_are_left_out_with_a_warning_and_the_pixels_are_saved(text, record, kept_text, kept_record):
    warned = []
    data = save.encode(PICTURE, text, record, "jpg", warn=warned.append)
    found = metadata.read(data)
    assert (found.infotext, found.record) == (text if kept_text else "", record if kept_record else "")
    assert Image.open(io.BytesIO(data)).size == PICTURE.size
    assert bool(warned) == ((found.infotext, found.record) != (text, record))


@pytest.mark.parametrize("format", ["png", "webp"])
def test_png_and_webp_hold_a_prompt_of_80_kilobytes(format):
    found = metadata.read(save.encode(PICTURE, noise(80_000), noise(80_000, 1), format, warn=pytest.fail))
    assert (len(found.infotext), len(found.record)) == (80_000, 80_000)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=50), st.text(st.characters(), max_size=50), st.sampled_from(["png", "jpg", "webp"]))
def test_no_text_whatever_loses_the_pixels(text, record, format):
    data = save.encode(PICTURE, text, record, format, warn=lambda sentence: None)
    assert metadata.pixels(data).size == PICTURE.size


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_half_a_character_and_nul_cost_at_most_themselves(format):
    found = metadata.read(save.encode(PICTURE, "a\ud800b", "{}", format, warn=lambda sentence: None))
    assert found.infotext in ("a?b", "a�b")
    assert metadata.read(save.encode(PICTURE, "x\0y", "{}", format, warn=lambda sentence: None)).infotext in ("x\0y", "x�y")


def test_a_record_beyond_its_limit_is_left_out_with_a_warning():
    warned = []
    found = metadata.read(save.encode(PICTURE, "kept", "x" * 3_000_000, warn=warned.append))
    assert (found.infotext, found.record, len(warned)) == ("kept", "", 1)


@pytest.mark.parametrize("format, side", [("jpg", 65536), ("webp", 16384)])
def test_what_is_too_large_for_a_format_becomes_a_png(format, side):
    warned = []
    data = save.encode(Image.new("RGB", (side, 1)), "a", "", format, warn=warned.append)
    assert save.ending(data) == "png" and len(warned) == 1 and metadata.read(data).infotext == "a"


@pytest.mark.parametrize("format", ["exe", "gif", "", "../png"])
def test_an_unknown_format_is_refused(format):
    with pytest.raises(SaveError):
        save.encode(PICTURE, format=format)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "I;16"])
@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_a_picture_of_any_mode_is_saved(mode, format):
    data = save.encode(Image.new(mode, (8, 8)), "a", "{}", format)
    assert metadata.read(data).infotext == "a"


def test_transparency_shows_white_in_a_jpeg_and_stays_in_a_png():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert metadata.pixels(save.encode(clear, format="jpg")).getpixel((4, 4)) == (255, 255, 255)
    assert metadata.pixels(save.encode(clear)).mode == "RGBA"


@pytest.mark.parametrize("format, name", [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_the_ending_is_what_the_bytes_are(format, name):
    assert save.ending(save.encode(PICTURE, format=format)) == name


# ---- names

@pytest.mark.parametrize("pattern, name", [
    ("[seed]", "5"), ("[prompt_spaces]", "a cat, (red:1.2)"), ("[date]/[steps]", "2024-03-09/20"), ("[cfg]-[sampler]", "7-Euler a"),
    ("[model_name]_[width]x[height]", "v1-5_512x768"), ("[job_timestamp]", "20240309140506"), ("[generation_number]", "3"),
    ("[SEED]", "5"), ("[unknown]", "[unknown]"), ("[[seed]]", "[5]"), ("[seed", "[seed"), ("a[]b", "a[]b"), ("", ""),
    ("[prompt_words]", "a cat red 1 2")])
def test_a_pattern_names_the_facts(pattern, name):
    assert expand(pattern, FACTS) == name


def test_a_fact_that_looks_like_a_token_stays_text():
    assert expand("[prompt]", Naming(now=NOW, prompt="[seed]")) == "[seed]"


def test_every_token_gives_text_for_empty_facts():
    assert all(isinstance(expand(f"[{token}]", Naming(now=NOW)), str) for token in names.TOKENS)


def test_the_default_name_is_number_and_seed_in_a_folder_of_the_day(tmp_path):
    data = save.encode(PICTURE)
    assert save.save(data, tmp_path, FACTS) == tmp_path / "2024-03-09" / "00001-5.png"
    assert save.save(data, tmp_path, FACTS) == tmp_path / "2024-03-09" / "00002-5.png"
    (tmp_path / "2024-03-09" / "00041-x.txt").write_text("")
    (tmp_path / "2024-03-09" / "99999999999-x.txt").write_text("")
    assert save.save(data, tmp_path, FACTS).name == "00042-5.png"
    assert save.save(data, tmp_path, FACTS, folders="").name == "00001-5-a cat, (red_1.2).png"
    assert save.save(data, tmp_path, FACTS, pattern="[seed]").name == "00043-5.png"


def test_without_a_number_a_second_file_still_gets_its_own_name(tmp_path):
    files = [save.encode(PICTURE, str(turn)) for turn in range(3)]
    found = [save.save(file, tmp_path, FACTS, pattern="[seed]", folders="", add_number=False) for file in files]
    assert [path.name for path in found] == ["5.png", "5-1.png", "5-2.png"]
    assert [metadata.read(path).infotext for path in found] == ["0", "1", "2"]


HOSTILE = ["..", "../../x", "..\\..\\x", "/etc/passwd", "C:\\x", "\\\\host\\share", "\\\\?\\C:\\x", "%2e%2e/x",
           "a\0b", "CON", "aux.png", "COM¹",
           "x.", "x ", "a::$DATA", "\u202egnp.exe", "x" * 300, "猫" * 200, "\ud800", "", " ",
           ".", "...", "[prompt]", "a/../../b", "~/x", "$HOME"]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("where", ["prompt", "pattern", "folders", "model_name"])
def test_no_name_leads_out_of_the_folder_whatever_part_of_it_is_hostile(hostile, where, tmp_path):
    root = tmp_path / "outputs"
    facts = Naming(now=NOW, prompt=hostile, model_name=hostile)
    pattern = hostile if where == "pattern" else f"[{where}]-[seed]" if where in ("prompt", "model_name") else ""
    try:
        folders = hostile if where == "folders" else "[prompt]/[model_name]"
        path = save.save(save.encode(PICTURE), root, facts, pattern=pattern, folders=folders)
    except PathError:
        return
    assert path.resolve().is_relative_to(root.resolve()) and path.is_file()
    assert all(safe_name(part) == part for part in path.relative_to(root).parts)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_link_that_leads_out_is_not_followed(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "2024-03-09").symlink_to(tmp_path)
    with pytest.raises(PathError):
        save.save(save.encode(PICTURE), tmp_path / "root", FACTS)


def test_a_folder_that_was_removed_is_made_again_and_one_that_cannot_be_is_named(tmp_path):
    assert save.save(save.encode(PICTURE), tmp_path / "gone" / "deeper", FACTS).is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(WebUIError):
        save.save(save.encode(PICTURE), tmp_path / "file", FACTS)


@pytest.mark.parametrize("options", [{}, {"pattern": "same", "folders": "", "add_number": False}])
def test_four_threads_lose_no_picture(tmp_path, options):
    data = save.encode(PICTURE)
    paths = []

    def work():
        paths.extend(save.save(data, tmp_path, FACTS, **options) for _ in range(25))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(set(paths)) == 100 and all(path.read_bytes() == data for path in paths)
    assert not list(tmp_path.rglob("*.part"))
