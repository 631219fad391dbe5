"""kill -9 at any moment of a batch of 4: no finished picture is lost, every file decodes, and the job can be taken up."""
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from modules.core.errors import BusyError
from modules.core.paths import Paths
from modules.engine import Engine
from modules.jobs.store import Store
from tests import tiny
from tests.jobs import dying, stub

HERE = Path(__file__).resolve().parents[2]
FINISHED = {"enqueue": 0, "step": 2, "file": 2, "commit": 2, "row": 3}


def die(root, moment, kind="stub", job=""):
    done = subprocess.run([sys.executable, "-m", "tests.jobs.dying", str(root), moment, kind, *([job] if job else [])],
                          cwd=HERE, capture_output=True, text=True, timeout=200)
    assert done.returncode == -9, done.stderr


def files(root):
    return sorted((root / "data" / "outputs").rglob("*.png"))


def rows(root):
    store = Store(root / "data" / "easel.db")
    assert store.sound()
    found = store.jobs()
    pictures = store.pictures(found[0].id)
    store.close()
    return found[0], pictures


@pytest.mark.parametrize("moment", FINISHED)
def test_no_finished_picture_is_lost_and_only_the_missing_ones_are_made(tmp_path, moment):
    die(tmp_path, moment)
    job, pictures = rows(tmp_path)
    assert [row.index for row in pictures] == list(range(FINISHED[moment]))
    for path in files(tmp_path):
        Image.open(path).load()
    for row in pictures:
        assert hashlib.sha256((tmp_path / "data" / row.path).read_bytes()).hexdigest() == row.sha256
    made = []

    def watched(request, resources):
        result = stub.spine(request, resources)
        made.extend(picture.index for picture in result.pictures)
        return result

    engine = Engine(Paths.of(tmp_path), spine=watched)
    try:
        assert not list((tmp_path / "data").rglob("*.part"))
        again = engine.job(job.id)
        if moment == "enqueue":
            assert engine.recovered == ()                   # it only waited, and goes on by itself
        else:
            assert engine.recovered == (job.id,)
            assert again.state == "interrupted"
            with pytest.raises(BusyError, match="resume"):
                again.result(1)
            again = engine.resume(job.id)
        result = again.result(60)
        assert again.state == "done"
        assert [picture.index for picture in result.pictures] == [0, 1, 2, 3]
        assert made == list(range(FINISHED[moment], 4))
        for picture in result.pictures:
            assert picture.path.read_bytes() == picture.file
            assert Image.open(picture.path).tobytes() == stub.noise(7 + picture.index).tobytes()
    finally:
        engine.close()


def test_a_job_under_which_the_program_died_twice_is_parked_and_not_run_again(tmp_path):
    die(tmp_path, "step")
    job, _ = rows(tmp_path)
    die(tmp_path, "step", job=job.id)
    engine = Engine(Paths.of(tmp_path), spine=stub.spine)
    try:
        parked = engine.job(job.id)
        assert parked.state == "parked"
        with pytest.raises(BusyError, match="parked"):
            engine.resume(job.id)
        assert len(engine.resume(job.id, force=True).result(60).pictures) == 4
    finally:
        engine.close()


def test_a_real_batch_killed_after_two_pictures_is_finished_with_the_bytes_of_an_unbroken_run(tmp_path):
    for name in ("killed", "whole"):
        folder = tmp_path / name / "models" / "Stable-diffusion"
        folder.mkdir(parents=True)
        tiny.save_sd1(folder / "tiny.safetensors")
    die(tmp_path / "killed", "step", "real")
    job, pictures = rows(tmp_path / "killed")
    assert [row.index for row in pictures] == [0, 1]
    results = []
    for name in ("killed", "whole"):
        engine = Engine(Paths.of(tmp_path / name))
        try:
            again = engine.resume(job.id) if name == "killed" else engine.submit(dying.REQUEST)
            results.append(again.result(200))
        finally:
            engine.close()
    assert [one.sha256 for one in results[0].pictures] == [one.sha256 for one in results[1].pictures]
