"""styles.csv and how a style meets a prompt."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.core.errors import PromptError, SaveError, SettingsError
from modules.prompts.styles import Style, apply, read, write

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAME = TEXT.filter(lambda name: name and not name.startswith("#"))


@pytest.mark.parametrize("prompt, style, merged", [
    ("a cat", "masterpiece, {prompt}", "masterpiece, a cat"),
    ("a cat", "{prompt} and {prompt}", "a cat and a cat"),
    (" a cat ", " film ", "a cat, film"),
    ("", "film", "film"),
    ("a cat", "", "a cat"),
    ("", "x {prompt} y", "x  y"),
])
def test_a_style_takes_the_prompt_in_or_follows_it(prompt, style, merged):
    assert apply(prompt, "", [Style("s", style)]) == (merged, "")
    assert apply("", prompt, [Style("s", "", style)]) == ("", merged)


def test_styles_are_merged_in_order_and_none_leaves_the_prompt_as_it_was():
    assert apply(" a ", "n", [Style("1", "b"), Style("2", "c, {prompt}", "m")]) == ("c, a, b", "n, m")
    assert apply(" a ", " n ", []) == (" a ", " n ")


def test_styles_that_double_the_prompt_again_and_again_are_refused_before_memory_is_full():
    with pytest.raises(PromptError, match="twice"):
        apply("a cat", "", [Style("twice", "{prompt}{prompt}")] * 100)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.builds(Style, NAME, TEXT, TEXT), max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory, styles):
    path = tmp_path_factory.mktemp("styles") / "styles.csv"
    write(path, styles)
    assert read(path) == tuple(styles)


@pytest.mark.parametrize("content, styles", [
    (b"name,prompt,negative_prompt\r\nfilm,grain,blur\r\n", (Style("film", "grain", "blur"),)),
    (b"\xef\xbb\xbfname,prompt,negative_prompt\nfilm,grain,blur\n", (Style("film", "grain", "blur"),)),
    (b"name,text\nold,words\n", (Style("old", "words"),)),
    (b"negative_prompt,name\nbad,turned\n", (Style("turned", "", "bad"),)),
    (b"name,prompt,negative_prompt\n# note,x,y\n,x,y\nfilm\n", (Style("film"),)),
    (b'name,prompt\nlines,"a\nb, ""c"""\nmore,1,2,3,4\n', (Style("lines", 'a\nb, "c"'), Style("more", "1"))),
    (b"", ()),
    (b"something else", ()),
])
def test_a_file_is_read_as_the_table_says(tmp_path, content, styles):
    (tmp_path / "styles.csv").write_bytes(content)
    assert read(tmp_path / "styles.csv") == styles


def test_no_file_means_no_styles(tmp_path):
    assert read(tmp_path / "styles.csv") == ()


@pytest.mark.parametrize("content", [
    b"name,prompt\nfilm,\xff\xfe\n", b"name,prompt\nfilm," + b"x" * 200_000 + b"\n", "name\nä".encode("utf-16")])
def test_a_file_that_is_no_table_of_styles_is_named_in_one_sentence(tmp_path, content):
    (tmp_path / "styles.csv").write_bytes(content)
    with pytest.raises(SettingsError, match=r"styles\.csv"):
        read(tmp_path / "styles.csv")


def test_a_folder_in_the_place_of_the_file_is_named_in_one_sentence(tmp_path):
    (tmp_path / "styles.csv").mkdir()
    with pytest.raises(SettingsError, match=r"styles\.csv"):
        read(tmp_path / "styles.csv")


@pytest.mark.parametrize("style", [Style("# x"), Style(""), Style("a", "\ud800")])
def test_a_style_that_could_not_be_read_back_is_not_written(tmp_path, style):
    write(tmp_path / "styles.csv", [Style("kept", "a")])
    with pytest.raises(SettingsError):
        write(tmp_path / "styles.csv", [style])
    assert read(tmp_path / "styles.csv") == (Style("kept", "a"),)


def test_a_file_that_cannot_be_written_is_a_save_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError):
        write(tmp_path / "file" / "styles.csv", [])
