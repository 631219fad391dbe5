"""Settings: typed, restricted where they must be, and never lost."""
import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modules.core.errors import SettingsError
from modules.core.options import BY_KEY, OPTIONS
from modules.core.settings import Settings, SettingsFile, as_json, coerce

ROOT = Path(__file__).resolve().parents[2]
SAVING = """
import sys
from modules.core.settings import SettingsFile
file = SettingsFile(sys.argv[1]); file.read(); print("ready", flush=True)
n = 0
while True:
    n += 1
    file.write({"samples_filename_pattern": f"{n}-" + "x" * 5000, "eta_noise_seed_delta": n})
"""


def test_every_default_fits_its_own_option():
    assert len(BY_KEY) == len(OPTIONS)
    assert all(coerce(option.key, option.default) == option.default for option in OPTIONS)
    assert all((option.minimum is None) == (option.maximum is None) for option in OPTIONS)


@pytest.mark.parametrize("key, given, kept", [
    ("jpeg_quality", 80.0, 80), ("jpeg_quality", "90", 90), ("jpeg_quality", "90.0", 90), ("eta_ddim", 1, 1.0), ("eta_ddim", "0.5", 0.5),
    ("samples_filename_pattern", 7, "7"), ("sd_model_checkpoint", None, ""), ("samples_save", 0, False), ("samples_save", "true", True),
    ("quicksettings_list", ["a", "b"], ("a", "b")), ("eta_noise_seed_delta", "-5", -5),
])
def test_a_value_takes_the_type_of_the_default(key, given, kept):
    value = coerce(key, given)
    assert value == kept and type(value) is type(kept)


@pytest.mark.parametrize("key, given", [
    ("jpeg_quality", True), ("jpeg_quality", 80.5), ("jpeg_quality", "much"), ("jpeg_quality", 0), ("jpeg_quality", 101),
    ("jpeg_quality", [80]), ("jpeg_quality", float("nan")), ("jpeg_quality", 1e308), ("jpeg_quality", "9" * 5000), ("jpeg_quality", None),
    ("eta_ddim", float("nan")), ("eta_ddim", float("inf")), ("eta_ddim", "inf"), ("eta_ddim", -0.1), ("samples_save", "yes"),
    ("samples_save", 2), ("samples_save", None), ("samples_format", "exe"), ("samples_filename_pattern", {}), ("quicksettings_list", "a"),
    ("samples_filename_pattern", "\ud800"), ("samples_filename_pattern", "x" * 70000), ("samples_filename_pattern", True),
    ("no_such_setting", 1), ("jpeg_qualty", 80),
])
def test_a_value_that_does_not_fit_is_refused_and_nothing_changes(tmp_path, key, given):
    file = SettingsFile(tmp_path / "settings.json")
    with pytest.raises(SettingsError) as said:
        file.write({"n_rows": 3, key: given})
    assert "\n" not in str(said.value) and len(str(said.value)) < 300
    assert file.snapshot() == Settings() and not (tmp_path / "settings.json").exists()


def test_the_sentence_for_an_unknown_setting_offers_the_nearest():
    with pytest.raises(SettingsError, match="jpeg_quality"):
        coerce("jpeg_qualty", 80)


def test_a_restricted_setting_changes_neither_by_saving_nor_by_override(tmp_path):
    file = SettingsFile(tmp_path / "settings.json")
    keys = [option.key for option in OPTIONS if option.restricted]
    assert {"outdir_samples", "outdir_txt2img_samples", "api_enable_requests"} <= set(keys)
    changes = {key: True if BY_KEY[key].default is False else "/etc" for key in keys if BY_KEY[key].default is not True}
    assert file.write(changes) == Settings() == file.snapshot(changes)
    assert file.write({"outdir_save": "elsewhere"}, restricted=True)["outdir_save"] == "elsewhere"


def test_what_was_written_is_read_again_and_a_snapshot_is_not_saved(tmp_path):
    path = tmp_path / "settings.json"
    written = SettingsFile(path).write({"jpeg_quality": 55, "quicksettings_list": ["sd_vae"], "samples_filename_pattern": "[seed]-ü"})
    again = SettingsFile(path)
    assert again.read() == written and again.warnings == ()
    assert again.snapshot({"jpeg_quality": 1})["jpeg_quality"] == 1 and again.snapshot()["jpeg_quality"] == 55
    assert json.loads(path.read_bytes())["jpeg_quality"] == 55
    assert json.loads(json.dumps(as_json(written)))["quicksettings_list"] == ["sd_vae"]


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(TypeError):
        Settings()["jpeg_quality"] = 3                      # type: ignore[index]


def test_keys_of_others_in_the_file_are_kept(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"lora_functional": true, "jpeg_quality": 60}')
    SettingsFile(path).write({"jpeg_quality": 61})
    assert json.loads(path.read_text()) == {"lora_functional": True, "jpeg_quality": 61}


BROKEN = {"empty": b"", "half": b'{"jpeg_quality": 5', "not utf-8": b'{"a": "\xff\xfe"}', "not json": b"hello", "a list": b"[1, 2]",
          "zeros": bytes(4096), "deep": b"[" * 100_000, "a number": b"3"}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("last", [True, False], ids=["with a last good copy", "without"])
def test_a_broken_file_is_kept_and_the_last_good_settings_or_the_defaults_stand(tmp_path, content, last):
    path = tmp_path / "settings.json"
    if last:
        SettingsFile(path).write({"jpeg_quality": 33})
    path.write_bytes(content)
    file = SettingsFile(path)
    assert file.read()["jpeg_quality"] == (33 if last else 80)
    assert len(file.warnings) == 1 and (tmp_path / "settings.json.bad").read_bytes() == content
    file.write({"jpeg_quality": 34})
    assert SettingsFile(path).read()["jpeg_quality"] == 34


def test_one_wrong_value_in_the_file_costs_only_itself(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"jpeg_quality": "much", "n_rows": 4}')
    file = SettingsFile(path)
    assert file.read()["n_rows"] == 4 and file.read()["jpeg_quality"] == 80 and len(file.warnings) == 1


def test_a_folder_in_the_place_of_the_file_does_not_stop_the_start(tmp_path):
    (tmp_path / "settings.json").mkdir()
    file = SettingsFile(tmp_path / "settings.json")
    assert file.read() == Settings() and len(file.warnings) == 1


def test_eight_threads_writing_different_settings_lose_none(tmp_path):
    file = SettingsFile(tmp_path / "settings.json")
    keys = ["jpeg_quality", "n_rows", "uni_pc_order", "s_churn", "s_tmin", "s_tmax", "comma_padding_backtrack", "eta_noise_seed_delta"]
    threads = [threading.Thread(target=lambda key=key: [file.write({key: n}) for n in range(1, 11)]) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = SettingsFile(tmp_path / "settings.json").read()
    assert [found[key] for key in keys] == [10] * 8


def test_a_process_killed_while_it_saves_leaves_one_of_the_written_values(tmp_path):
    path = tmp_path / "settings.json"
    for attempt in range(20):
        running = subprocess.Popen([sys.executable, "-c", SAVING, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert running.stdout.readline() == "ready\n"
        time.sleep(random.Random(attempt).uniform(0.005, 0.06))
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stdout.close()
        file = SettingsFile(path)
        found = file.read()
        assert file.warnings == ()
        number = found["eta_noise_seed_delta"]
        assert found["samples_filename_pattern"] in ("", f"{number}-" + "x" * 5000)
