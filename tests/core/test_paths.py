"""The path gate: one verdict on every system, and nothing leads out of its folder."""
import ntpath
import os
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.core.errors import PathError
from modules.core.paths import Paths, clean_name, safe_join, safe_name

DEVICES = [*"CON PRN AUX NUL CLOCK$ CONIN$ CONOUT$".split(), *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³")]
HOSTILE = [
    "", " ", "   ", ".", "..", "...", ". .", ".. ", " ..", "../x", "..\\x", "a/b", "a\\b", "/", "\\", "/etc/passwd", "\\etc\\passwd",
    "a/../../b", "..../x", "....\\x", "./x", ".\\x", "~/x/", "C:", "c:", "C:x", "C:\\x", "C:/x", "\\\\server\\share", "//server/share",
    "\\\\?\\C:\\x", "\\\\.\\pipe\\x", "\\??\\C:\\x", "//?/C:/x", "file:///etc/passwd", "\\\\?\\UNC\\server\\share", "x:y", "x:",
    "x\0", "\0", "a\0.png", "x\n", "x\r", "x\t", "x\x1b[2J", "x\x7f", "x\x80", "x\x9f", "a\u202egnp.exe", "a\u2066b", "a\u200fb",
    "x.", "x..", "x ", "x. ", "x .", "x...", " x", "x.png.", "x.png ", "x::$DATA", "x.png::$DATA", "x:stream", ":$i30:$INDEX_ALLOCATION",
    "x*", "x?", "x<y", "x>y", 'x"y', "x|y", "*", "?", "%2e%2e", "%2E%2e", "%2e%2e%2fx", "a%2fb", "a%5cb", "a%00b", "%5C",
    "a" * 256, "a" * 300, "ä" * 128, "😀" * 64, "\ud800", "x\udcffy", "\udfff.png", "a\ud83d",
    *DEVICES, *(name.lower() + ".png" for name in DEVICES), "Con.tar.gz", "nul .txt", "aux.", "COM1 ", "com¹.png", "lpt³", "NUL:",
]
FINE = ["x", "x.png", "00001-42.png", ".hidden", "a b", "a.b.c", "ein Bär", "猫", "😀.png", "-x", "console", "com", "COM10", "nullx.png",
        "a,b;c=d+e@f!", "(x:1.2)".replace(":", "_"), "100%", "a" * 255, "'", "`$(x)`", "aux1", "_con"]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_refused_with_one_sentence(name, tmp_path):
    with pytest.raises(PathError) as said:
        safe_name(name)
    assert "\n" not in str(said.value) and len(str(said.value)) < 300
    str(said.value).encode("utf-8")
    with pytest.raises(PathError):
        safe_join(tmp_path, "fine", name)


def test_the_list_of_hostile_names_is_long_enough():
    assert len(set(HOSTILE)) >= 100


@pytest.mark.parametrize("name", FINE, ids=ascii)
def test_an_ordinary_name_passes_and_stays_in_its_folder_on_both_kinds_of_system(name, tmp_path):
    assert safe_name(name) == unicodedata.normalize("NFC", name)
    assert safe_join(tmp_path, name).parent == tmp_path
    assert PurePosixPath(name).parts == (name,) == PureWindowsPath(name).parts
    assert not ntpath.isabs(name) and ntpath.splitdrive(name)[0] == ""


@given(st.text(max_size=40))
def test_what_the_gate_lets_through_is_one_component_everywhere(text):
    try:
        name = safe_name(text)
    except PathError:
        return
    assert PurePosixPath(name).parts == (name,) == PureWindowsPath(name).parts
    assert ntpath.normpath(ntpath.join("C:\\root", name)) == "C:\\root\\" + name
    assert os.path.normpath(os.path.join("/root", name)) == "/root/" + name
    assert not PureWindowsPath(name).is_reserved()


@given(st.one_of(st.text(max_size=400), st.sampled_from(HOSTILE)))
def test_a_cleaned_name_always_passes_the_gate(text):
    assert safe_name(clean_name(text)) == clean_name(text)
    assert len(clean_name(text, longest=40).encode()) <= 40


def test_two_spellings_of_one_name_are_one_name():
    assert safe_name("Ba\u0308r") == safe_name("B\u00e4r")


@pytest.mark.parametrize("name", [b"x", None, 3, Path("x")])
def test_what_is_no_text_is_refused(name):
    with pytest.raises(PathError):
        safe_name(name)


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_not(tmp_path):
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to(root / "inside")
    (root / "loop").symlink_to(root / "loop")
    assert safe_join(root, "in", "x.png") == root / "in" / "x.png"
    for names in (("out",), ("out", "x.png"), ("loop", "x")):
        with pytest.raises(PathError):
            safe_join(root, *names)


def test_no_name_at_all_is_refused(tmp_path):
    with pytest.raises(PathError):
        safe_join(tmp_path)


def test_folders_are_called_as_a1111_calls_them_and_none_is_made_before_make(tmp_path):
    paths = Paths.of(tmp_path)
    assert paths.checkpoints == (tmp_path / "models" / "Stable-diffusion",)
    assert paths.vae == (tmp_path / "models" / "VAE",) and paths.lora == (tmp_path / "models" / "Lora",)
    assert paths.outputs == tmp_path / "data" / "outputs"
    assert list(tmp_path.iterdir()) == []
    paths.make()
    assert all(folder.is_dir() for folder in (paths.outputs, paths.cache, paths.spool, *paths.checkpoints, paths.embeddings))


def test_a_checkpoint_folder_of_the_users_is_added_and_the_data_folder_replaced(tmp_path):
    paths = Paths.of(tmp_path, data_dir=tmp_path / "d", ckpt_dir=tmp_path / "more", embeddings_dir=tmp_path / "e")
    assert paths.checkpoints == (tmp_path / "models" / "Stable-diffusion", tmp_path / "more")
    assert paths.database == tmp_path / "d" / "easel.db" and paths.embeddings == tmp_path / "e"
