"""What a picture file says is read without decoding it; nothing a stranger's file holds does harm."""
import io
import random
import resource
import struct
import zlib

import piexif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from modules.core.errors import ImageMetaError
from modules.imaging import containers, metadata, save

TEXT = "a (cat:1.2), 猫 é\nNegative prompt: b\nSteps: 20, Sampler: Euler a, CFG scale: 7"
RECORD = '{"easel":1,"prompt":"猫\\u0000"}'


def picture(size=(32, 24), mode="RGB"):
    noise = random.Random(1).randbytes(size[0] * size[1] * len(mode))
    return Image.frombytes(mode, size, noise)


def written(image=None, **options):
    file = io.BytesIO()
    (image or picture()).save(file, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks, size=(32, 24)):
    """A PNG by hand: header, these chunks, pixels."""
    rows = b"".join(b"\0" + bytes(size[0] * 3) for _ in range(size[1])) if size[0] * size[1] < 10**6 else b"\0" * 20
    return (containers.PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)) + b"".join(chunks)
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
@pytest.mark.parametrize("text", [TEXT, "plain", "é only latin-1", "𝒳 😀", ""])
def test_what_was_embedded_is_read_back(format, text):
    found = metadata.read(save.encode(picture(), text, RECORD, format))
    assert (found.infotext, found.record) == (text, RECORD)
    assert (found.width, found.height, found.items) == (32, 24, {})


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_the_size_of_every_format_is_read(format):
    found = metadata.read(written(picture((37, 21)), format=format))
    assert (found.format, found.width, found.height) == (format, 37, 21)
    assert metadata.pixels(written(picture((37, 21)), format=format)).size == (37, 21)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0"}])
def test_the_size_of_every_kind_of_webp_is_read(options):
    found = metadata.read(written(picture((301, 21)), format="WEBP", **options))
    assert (found.width, found.height) == (301, 21)


def test_other_programs_text_entries_are_items_and_housekeeping_is_not():
    info = PngInfo()
    for key, text in {"parameters": "p", "prompt": "{}", "Software": "NovelAI", "Comment": "{}", "dpi": "x"}.items():
        info.add_text(key, text)
    info.add_itxt("workflow", "猫", zip=True)
    found = metadata.read(written(format="PNG", pnginfo=info, dpi=(72, 72)))
    assert found.infotext == "p"
    assert found.items == {"prompt": "{}", "Software": "NovelAI", "Comment": "{}", "workflow": "猫"}


def test_text_after_the_pixels_is_read_too():
    data = png()
    end = data.index(b"IEND") - 4
    assert metadata.read(data[:end] + chunk(b"tEXt", b"parameters\0late") + data[end:]).infotext == "late"


def test_a_comment_in_exif_wins_over_the_chunk_and_a_gif_comment_comes_last():
    exif = save.exif_of("from exif", "", 10**6)
    assert metadata.read(png(chunk(b"tEXt", b"parameters\0chunk"), chunk(b"eXIf", exif[6:]))).infotext == "from exif"
    assert metadata.read(png(chunk(b"tEXt", b"parameters\0chunk"), chunk(b"tEXt", b"comment\0c"))).infotext == "chunk"
    assert metadata.read(written(picture().convert("P"), format="GIF", comment="gif é".encode())).infotext == "gif é"
    assert metadata.read(written(format="JPEG", comment=b"jpeg")).infotext == "jpeg"


@pytest.mark.parametrize("comment, text", [
    (b"UNICODE\0" + TEXT.encode("utf-16-be"), TEXT), (b"UNICODE\0" + TEXT.encode("utf-16-le"), TEXT),
    (b"UNICODE\0" + TEXT.encode("utf-16"), TEXT), (b"UNICODE\0" + b"Steps: 20, Sampler: x", "Steps: 20, Sampler: x"),
    (b"ASCII\0\0\0plain", "plain"), (b"\0" * 8 + TEXT.encode(), TEXT), (TEXT.encode(), TEXT), (b"", ""), (b"UNICODE\0", ""),
    (b"UNICODE\0" + "猫猫猫".encode("utf-16-be"), "猫猫猫"),
    (b"UNICODE\0\xd8", "�"), (b"JIS\0\0\0\0\0" + "猫".encode("shift_jis"), "猫")])
def test_a_user_comment_is_read_whoever_wrote_it(comment, text):
    block = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}}) if comment else b""
    assert metadata.read(written(format="JPEG", exif=block)).infotext == text


def test_exif_of_either_byte_order_is_read():
    little = Image.Exif()
    little.endian = "<"
    little.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0little"
    assert little.tobytes()[6:8] in (b"II", b"MM")
    assert metadata.read(written(format="JPEG", exif=little.tobytes())).infotext == "little"


def test_comfys_texts_in_a_webp_are_items():
    exif = Image.Exif()
    exif[0x0110], exif[0x010F] = 'prompt:{"1": {}}', 'workflow:{"nodes": []}'
    assert metadata.read(written(format="WEBP", exif=exif.tobytes())).items == {"prompt": '{"1": {}}', "workflow": '{"nodes": []}'}


# ---- strangers' files

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024                    # MiB


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_tiny_file_that_claims_a_huge_picture_is_read_but_not_decoded(side):
    bomb = png(size=(side, side))
    assert metadata.read(bomb).width == side
    before = peak()
    with pytest.raises(ImageMetaError, match="more than"):
        metadata.pixels(bomb)
    assert peak() - before < 50


@pytest.mark.parametrize("kind, body", [
    (b"zTXt", b"parameters\0\0" + zlib.compress(bytes(50_000_000), 9)), (b"tEXt", b"parameters\0" + b"x" * 3_000_000),
    (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(bytes(50_000_000), 9)), (b"iTXt", b"parameters\0\0\0\0\0" + b"x" * 3_000_000)],
    ids=["zTXt", "tEXt", "packed iTXt", "iTXt"])
def test_a_text_that_is_too_long_is_left_out_with_a_notice_and_the_picture_is_taken(kind, body):
    data = png(chunk(kind, body), chunk(b"tEXt", b"other\0kept"))
    before = peak()
    found = metadata.read(data)
    assert found.infotext == "" and found.items == {"other": "kept"} and "parameters" in found.notices[0]
    assert metadata.pixels(data).size == (32, 24)
    assert peak() - before < 100


def test_many_texts_together_are_capped():
    found = metadata.read(png(*(chunk(b"tEXt", b"k%d\0" % number + b"x" * 2_000_000) for number in range(8))))
    assert len(found.items) == 4 and len(found.notices) == 4


@pytest.mark.parametrize("data", [
    b"", b"x", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"SIMPLE  =                    T", b"II*\0\x08\0\0\0", b"BM" + bytes(60),
    containers.PNG, b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a", bytes(4) + b"ftypavif", containers.PNG + bytes(100),
    b"8BPS" + bytes(30), b"%PDF-1.4"], ids=range(14))
def test_what_is_none_of_the_five_formats_or_breaks_off_is_refused(data):
    with pytest.raises(ImageMetaError):
        metadata.read(data)
    with pytest.raises(ImageMetaError):
        metadata.pixels(data)


@pytest.mark.parametrize("exif", [
    b"MM", b"MM\0*", b"MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"garbage garbage",
    b"II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08\0\1\x92\x86\0\7\xff\xff\xff\xff\0\0\0\x20", b"MM\0*\0\0\0\x08\0\1\x92\x7c\0\7\0\0\0\x20\0\0\0\x08" + bytes(40)])
def test_garbage_in_exif_costs_neither_the_picture_nor_its_chunk(exif):
    found = metadata.read(png(chunk(b"tEXt", b"parameters\0chunk"), chunk(b"eXIf", exif)))
    assert found.infotext == "chunk" and found.width == 32


def test_a_packed_record_that_unfolds_without_end_is_left_out():
    note = metadata.PACKED_RECORD + zlib.compress(bytes(50_000_000), 9)
    block = piexif.dump({"Exif": {piexif.ExifIFD.MakerNote: note, piexif.ExifIFD.UserComment: metadata.user_comment("kept")}})
    found = metadata.read(written(format="JPEG", exif=block))
    assert (found.record, found.infotext) == ("", "kept")


SEEDS = [save.encode(picture(), TEXT, RECORD, format) for format in ("png", "jpg", "webp")] + [
    written(picture().convert("P"), format="GIF", comment=b"c"), written(format="AVIF", exif=save.exif_of(TEXT, RECORD, 10**6))]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=6))
def test_a_damaged_file_gives_metadata_or_our_error(data, damages):
    for place, bytes_, gone in damages:
        place %= len(data)
        data = data[:place] + bytes_ + data[place + gone:]
    for look in (metadata.read, metadata.pixels):
        try:
            look(data)
        except ImageMetaError as error:
            assert str(error).endswith(".")


@given(st.sampled_from(SEEDS), st.integers(0, 3000))
def test_a_file_that_breaks_off_gives_metadata_or_our_error(data, length):
    try:
        metadata.read(data[:length])
    except ImageMetaError as error:
        assert str(error)


def test_a_file_is_read_by_its_path_and_a_missing_one_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(save.encode(picture(), TEXT))
    assert metadata.read(path).infotext == TEXT
    for other in (tmp_path, tmp_path / "none.png", tmp_path / "a\0.png"):
        with pytest.raises(ImageMetaError):
            metadata.read(other)


def test_no_global_limit_is_changed_and_no_warning_is_left(recwarn):
    limits = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    metadata.read(png(size=(12_000, 12_000)))
    metadata.pixels(png())
    assert limits == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) and not list(recwarn)


def test_the_pixel_hash_is_of_pixels_and_size_and_not_of_the_file():
    image = picture()
    files = [save.encode(image, "one", "", "png"), save.encode(image, "two", RECORD, "png"),
             save.encode(image, "", "", "webp", lossless=True)]
    assert {metadata.pixels_sha256(metadata.pixels(file)) for file in files} == {metadata.pixels_sha256(image)}
    assert metadata.pixels_sha256(image) != metadata.pixels_sha256(Image.frombytes("RGB", (24, 32), image.tobytes()))
