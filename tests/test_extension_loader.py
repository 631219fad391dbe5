"""Folders of extensions: what is found, in which order, and that a broken one is named and harms nobody."""
import pytest

from modules.core.errors import RequestError, SettingsError
from modules.core.paths import Paths
from modules.core.settings import Settings
from modules.engine import Engine
from modules.extension_loader import load
from modules.pipeline.request import Request
from tests.jobs import stub

HEAD = "from modules.core.options import Option\nfrom modules.pipeline.extension import Control, Extension\n"
GOOD = HEAD + """
class Lamp(Extension):
    name = {name!r}
    after = {after!r}

    def settings(self):
        return (Option({key!r}, 0.5, "Light", "Lamps", minimum=0.0, maximum=1.0),)

    def controls(self, tab):
        return (Control(name="light", label="Light", kind="float", default=0.5, minimum=0, maximum=1, setting={key!r}),)
"""


@pytest.fixture
def root(tmp_path):
    for folder in ("extensions", "modules/extensions-builtin"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def put(root, folder, text, kind="extensions"):
    (root / kind / folder).mkdir()
    (root / kind / folder / "extension.py").write_text(text, encoding="utf-8")


def good(root, folder, name=None, after=(), kind="extensions"):
    put(root, folder, GOOD.format(name=name or folder, after=tuple(after), key=f"{folder}_light"), kind)


def found(root, settings=None, **how):
    return load(Paths.of(root), Settings(settings or {}), **how)


def names(entries):
    return [entry.name for entry in entries if entry.extension]


def test_builtin_ones_come_first_then_the_users_by_name(root):
    for folder, kind in (("b", "extensions"), ("a", "extensions"), ("z", "modules/extensions-builtin")):
        good(root, folder, kind=kind)
    (root / "extensions" / "no-extension").mkdir()
    assert names(found(root)) == ["z", "a", "b"] and [entry.builtin for entry in found(root)] == [True, False, False]


def test_one_comes_after_those_it_names_and_a_circle_or_an_unknown_name_is_passed_over(root):
    good(root, "a", after=["c", "nowhere"])
    good(root, "b", after=["a"])
    good(root, "c")
    assert names(found(root)) == ["c", "a", "b"]
    good(root, "x", after=["y"])
    good(root, "y", after=["x"])
    assert sorted(names(found(root))) == ["a", "b", "c", "x", "y"]


@pytest.mark.parametrize("text, words", [
    ("def x(:\n", "line 1 of extension.py"), ("import no_such_module_at_all\n", "no_such_module_at_all"), ("x = 1\n", "one subclass"),
    (HEAD + "class A(Extension):\n    name = 'a'\nclass B(Extension):\n    name = 'b'\n", "one subclass"),
    (HEAD + "class A(Extension):\n    name = 'a'\n    def __init__(self):\n        raise ValueError('no lamp')\n", "no lamp"),
    (HEAD + "class A(Extension):\n    name = ''\n", "name"), (HEAD + "raise SystemExit(3)\n", "SystemExit"),
    (HEAD + "class A(Extension):\n    name = 'a'\n    def controls(self, tab):\n        return 7 / 0\n", "ZeroDivisionError"),
    (HEAD + "class A(Extension):\n    name = 'a'\n    def settings(self):\n        return (Option('sd_vae', '', '', ''),)\n", "sd_vae"),
    (HEAD + "class A(Extension):\n    name = 'a'\n    def controls(self, tab):\n        return (Control(name='x', label='X', kind='int', "
     "default='y'),)\n", "X"),
], ids=["syntax", "import", "none", "two", "init", "nameless", "exit", "controls", "setting", "default"])
def test_a_broken_one_is_named_with_a_sentence_and_left_out(root, text, words):
    put(root, "broken", text)
    good(root, "whole")
    entries = found(root)
    assert names(entries) == ["whole"]
    trouble = next(entry.trouble for entry in entries if entry.folder == "broken")
    assert trouble.startswith("The extension broken was left out: ") and words in trouble and trouble.endswith(".")


def test_of_two_with_one_name_the_second_is_left_out(root):
    good(root, "a", name="Lamp")
    good(root, "b", name="lamp")
    entries = found(root)
    assert names(entries) == ["Lamp"] and "taken by the one in a" in entries[-1].trouble


@pytest.mark.parametrize("settings, flag, left", [
    ({}, "none", ["own", "user"]), ({"disabled_extensions": ["user"]}, "none", ["own"]), ({"disable_all_extensions": "extra"}, "none", ["own"]),
    ({"disable_all_extensions": "all"}, "none", []), ({}, "extra", ["own"]), ({"disable_all_extensions": "extra"}, "all", [])])
def test_what_is_disabled_is_not_even_imported(root, settings, flag, left):
    good(root, "own", kind="modules/extensions-builtin")
    put(root, "user", GOOD.format(name="user", after=(), key="user_light") + f"\nopen({str(root / 'was-here')!r}, 'w').close()\n")
    entries = found(root, settings, disable=flag)
    assert names(entries) == left and (root / "was-here").exists() == ("user" in left)
    assert [entry.folder for entry in entries if not entry.enabled] == [name for name in ("own", "user") if name not in left]


def test_its_folder_may_hold_more_than_one_file_and_its_module_has_a_name_of_its_own(root):
    put(root, "my-lamp", "from .bulb import WATTS\n" + GOOD.format(name="lamp", after=(), key="k").replace("0.5", "WATTS"))
    (root / "extensions" / "my-lamp" / "bulb.py").write_text("WATTS = 0.25\n", encoding="utf-8")
    (entry,) = found(root)
    assert entry.controls[0].default == 0.25 and type(entry.extension).__module__ == "easel_extensions.my_lamp"


# ---- in the engine

@pytest.fixture
def engine(root):
    good(root, "lamp", name="Lamp")
    put(root, "broken", "import no_such_module_at_all\n")
    paths = stub.house(root)
    made = Engine(paths, spine=stub.spine, extensions=lambda settings: load(paths, settings))
    yield made
    made.close()


def test_its_settings_join_the_table_and_are_kept(engine, root):
    assert engine.tools.options()["lamp_light"] == 0.5
    engine.tools.set_options({"lamp_light": 0.75})
    assert '"lamp_light": 0.75' in (root / "data" / "settings.json").read_text()
    with pytest.raises(SettingsError):
        engine.tools.set_options({"lamp_light": 9})


def test_a_control_follows_its_setting_from_the_moment_of_submission(engine):
    small = Request(prompt="x", seed=1, steps=1, width=64, height=64)
    engine.tools.set_options({"lamp_light": 0.75})
    assert engine.submit(small).request.extra == {"Lamp": {"light": 0.75}}
    job = engine.submit(Request(**{**vars(small), "extra": {"lamp": {"light": "0.5"}}}))
    assert job.request.extra == {} and len(job.result(30).pictures) == 1


def test_the_start_tells_of_a_broken_one_and_a_request_for_it_is_refused(engine):
    assert any("broken" in sentence for sentence in engine.tools.warnings())
    with pytest.raises(RequestError, match="broken"):
        engine.submit(Request(prompt="x", extra={"broken": {}}))
