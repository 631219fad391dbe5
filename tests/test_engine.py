"""The engine: frozen jobs, one after another, ended once, whatever is pressed, thrown or full."""
import asyncio
import dataclasses
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from modules.core.errors import BusyError, DiskFullError, NanError, NotFoundError, OutOfMemoryError, RequestError, SettingsError
from modules.core.paths import Paths
from modules.engine import Engine
from modules.errands import serving
from modules.imaging import metadata
from modules.pipeline.request import Request
from tests import tiny
from tests.jobs import stub

HERE = Path(__file__).resolve().parents[1]
SMALL = Request(prompt="a boat", seed=1, steps=3, width=64, height=64)
ENDS = {"done", "failed", "cancelled"}


@pytest.fixture
def engine(tmp_path):
    made = Engine(stub.house(tmp_path), spine=stub.spine)
    yield made
    made.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    paths = Paths.of(root)
    paths.checkpoints[0].mkdir(parents=True)
    tiny.save_sd1(paths.checkpoints[0] / "tiny.safetensors")
    made = Engine(paths)
    yield made
    made.close()


@contextmanager
def throwing(tmp_path, error):
    """An engine whose first job throws."""
    thrown = []

    def spine(request, resources):
        if not thrown:
            thrown.append(True)
            raise error
        return stub.spine(request, resources)

    made = Engine(stub.house(tmp_path), spine=spine)
    try:
        yield made
    finally:
        made.close()


# ---- what is frozen

def test_nothing_heavy_is_imported_until_a_job_runs(tmp_path):
    code = (f"import sys; from modules.engine import Engine; from tests.jobs.stub import house; from pathlib import Path\n"
            f"from modules.pipeline.request import Request\n"
            f"engine = Engine(house(Path({str(tmp_path)!r})), whole_queue=False); engine._worker.wake = lambda: None\n"
            f"engine.submit(Request()); engine.tools.options(); engine.tools.checkpoints(); engine.close()\n"
            f"print([name for name in ('torch', 'transformers', 'gradio', 'numpy', 'tokenizers') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_submitted_request_has_every_name_and_seed_decided(engine):
    request = engine.submit(Request(prompt="x", sampler="euler A karras", width=64, height=64, steps=1)).request
    assert (request.sampler, request.scheduler, request.checkpoint, request.vae) == ("Euler a", "Karras", "name.safetensors", "Automatic")
    assert 0 <= request.seed <= 4294967293


def test_a_variation_seed_is_drawn_only_where_it_is_used(engine):
    """A drawn number that nothing uses would make the files of equal requests differ."""
    assert engine.submit(SMALL).request.subseed == 0
    assert engine.submit(Request(subseed_strength=0.5, subseed=9, width=64, height=64)).request.subseed == 9


def test_a_change_of_settings_after_submission_does_not_reach_the_job(engine):
    seen = []
    engine._spine = lambda request, resources: (seen.append(resources.settings["jpeg_quality"]), stub.spine(request, resources))[1]
    first = engine.submit(SMALL, overrides={"jpeg_quality": 33})
    engine.tools.set_options({"jpeg_quality": 55})
    second = engine.submit(SMALL)
    first.result(60), second.result(60)
    assert seen == [33, 55]


@pytest.mark.parametrize("change, field", [({"steps": 0}, "steps"), ({"width": 0}, "width"), ({"height": 10**6}, "height"),
                                           ({"n_iter": 0}, "n_iter"),
                                           ({"prompt": "x" * 70_000}, "prompt"), ({"prompt": "\ud800"}, "prompt")])
def test_a_request_out_of_range_is_refused_before_it_is_queued(engine, change, field):
    with pytest.raises(RequestError) as caught:
        engine.submit(Request(**change))
    assert caught.value.field == field
    assert engine.tools.history() == ()


def test_unknown_names_are_refused_in_a_sentence(engine):
    for wrong in (Request(sampler="Eulerr"), Request(checkpoint="nowhere"), Request(vae="nowhere.pt")):
        with pytest.raises(NotFoundError):
            engine.submit(wrong)


def test_a_checkpoint_of_the_settings_that_is_gone_is_replaced_with_a_warning(engine, tmp_path):
    other = tmp_path / "models" / "Stable-diffusion" / "other.safetensors"
    other.write_bytes(b"another")
    engine.tools.set_options({"sd_model_checkpoint": "other"})
    assert engine.submit(SMALL).request.checkpoint == "other.safetensors"
    other.unlink()
    engine.tools.checkpoints(refresh=True)
    job = engine.submit(SMALL)
    result = job.result(60)
    assert job.request.checkpoint == "name.safetensors"
    assert "other.safetensors" in " ".join((*job.warnings, *result.warnings))


def test_the_settings_eta_is_decided_when_the_job_is_entered(engine):
    engine.tools.set_options({"eta_ancestral": 0.5})
    asked = {"Euler a": None, "DDIM": None, "Euler": None, "DPM++ 2M SDE": 0.25}
    got = {name: engine.submit(Request(sampler=name, eta=eta)).request.eta for name, eta in asked.items()}
    assert got == {"Euler a": 0.5, "DDIM": None, "Euler": None, "DPM++ 2M SDE": 0.25}


# ---- settings by the tools

def test_options_change_all_or_none_and_restricted_ones_not_from_afar(engine):
    with pytest.raises(SettingsError):
        engine.tools.set_options({"jpeg_quality": 70, "no_such_option": 1})
    assert engine.tools.options()["jpeg_quality"] == 80
    assert "outdir_samples" in engine.tools.set_options({"outdir_samples": "elsewhere", "jpeg_quality": 70}, remote=True)[0]
    assert (engine.tools.options()["outdir_samples"], engine.tools.options()["jpeg_quality"]) == ("", 70)
    with pytest.raises(NotFoundError):
        engine.tools.set_options({"sd_model_checkpoint": "nowhere"})


def test_a_request_from_fields_takes_texts_for_numbers_and_the_rest_from_the_settings(engine):
    engine.tools.set_options({"CLIP_stop_at_last_layers": 2, "samples_format": "jpeg"})
    request = engine.tools.request({"steps": "12", "prompt": 5}, {"eta_noise_seed_delta": 31337})
    assert (request.steps, request.prompt, request.clip_skip, request.image_format) == (12, "5", 2, "jpg")
    assert request.eta_noise_seed_delta == 31337
    assert engine.tools.request({}, api=True).steps == 50
    with pytest.raises(RequestError):
        engine.tools.request({"steps": True})


# ---- one end, and only its own

def test_a_cancelled_waiting_job_never_runs_and_the_others_keep_their_order(engine):
    first = engine.submit(Request(prompt="1", steps=150, width=64, height=64))
    while engine.running() is not first:
        time.sleep(0.001)
    second, third = engine.submit(SMALL), engine.submit(SMALL)
    assert (second.position, third.position) == (0, 1)
    second.cancel()
    assert second.result(1).pictures == () and second.state == "cancelled"
    first.result(60)
    assert len(third.result(60).pictures) == 1


def test_an_interrupted_job_gives_its_finished_pictures_and_the_rough_one_marked(engine):
    job = engine.submit(Request(prompt="x", seed=5, steps=40, n_iter=50, width=64, height=64))
    while len(job.pictures()) < 2:
        pass
    job.cancel()
    result = job.result(60)
    assert job.state == "cancelled"
    rough = [picture for picture in result.pictures if not picture.complete]
    assert len(rough) <= 1 and all(picture.path is None for picture in rough)      # rough ones stay in the spool
    assert all(picture.path.is_file() for picture in result.pictures if picture.complete)
    for row in job.pictures():
        assert engine.tools.picture_file(job.id, row.index).is_file()


def test_a_cancelled_job_can_be_taken_up_and_ends_with_every_picture(engine):
    job = engine.submit(Request(prompt="x", seed=5, steps=20, n_iter=5, width=64, height=64))
    while len(job.pictures()) < 2:
        pass
    job.cancel()
    job.result(60)
    result = engine.resume(job.id).result(60)
    assert [picture.index for picture in result.pictures] == [0, 1, 2, 3, 4]
    assert all(picture.complete for picture in result.pictures)


def test_a_skip_ends_one_batch_and_the_job_is_done(engine):
    job = engine.submit(Request(prompt="x", steps=60, n_iter=3, width=64, height=64))
    while job.progress.step < 5:
        pass
    job.skip()
    assert len(job.result(60).pictures) == 3
    assert job.state == "done"


def test_neither_cancel_nor_skip_does_anything_to_an_ended_job(engine):
    job = engine.submit(SMALL)
    before = job.result(60)
    job.cancel(), job.skip()
    assert job.state == "done" and job.result(1) is before


@pytest.mark.parametrize("seed", range(10))
def test_interrupts_and_skips_at_any_moment_end_their_own_job_once(engine, seed):
    """Ten races each: presses at random moments from three threads, twice and on foreign jobs too."""
    rng = random.Random(seed)
    jobs = [engine.submit(Request(prompt=str(number), seed=number, steps=8, n_iter=2, width=64, height=64)) for number in range(10)]
    ends: dict[str, int] = {}
    finish = engine._worker._finish

    def counted(job_id, state, **facts):
        ends[job_id] = ends.get(job_id, 0) + finish(job_id, state, **facts)
        return True

    engine._worker._finish = counted
    spared = set(rng.sample(range(10), 3))

    def press():
        mine = random.Random(rng.random())
        for _ in range(12):
            number = mine.randrange(10)
            if number not in spared:
                mine.choice((jobs[number].cancel, jobs[number].skip, jobs[number].cancel))()
            threading.Event().wait(mine.random() * 0.03)

    threads = [threading.Thread(target=press) for _ in range(3)]
    for thread in threads:
        thread.start()
    results = [job.result(60) for job in jobs]
    for thread in threads:
        thread.join()
    assert all(job.state in ENDS - {"failed"} for job in jobs)
    assert all(count <= 1 for count in ends.values())
    for number in spared:                                   # nobody pressed on these: whole and their own
        assert jobs[number].state == "done"
        assert [picture.image.tobytes() for picture in results[number].pictures] == [
            stub.noise(number + index).tobytes() for index in range(2)]
    after = engine.submit(SMALL).result(60)
    assert [picture.complete for picture in after.pictures] == [True]


# ---- what is thrown

@pytest.mark.parametrize("error, code, kind", [
    (NanError("The model gave no numbers."), "nan", NanError),
    (MemoryError(), "out_of_memory", OutOfMemoryError),
    (OSError(28, "No space left on device"), "disk_full", DiskFullError),
    (ZeroDivisionError("division by zero"), "internal", Exception),
    (SystemExit(3), "internal", Exception),
])
def test_a_failed_job_says_why_and_the_next_one_is_good(tmp_path, error, code, kind):
    with throwing(tmp_path, error) as engine:
        bad, good = engine.submit(SMALL), engine.submit(SMALL)
        with pytest.raises(kind):
            bad.result(60)
        assert (bad.state, bad.error.code) == ("failed", code)
        assert "Traceback" not in str(bad.error) and str(bad.error).endswith((".", ";", "details."))
        assert len(good.result(60).pictures) == 1


def test_torchs_out_of_memory_is_told_as_such(tmp_path):
    import torch
    with throwing(tmp_path, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")) as engine:
        with pytest.raises(OutOfMemoryError, match="smaller"):
            engine.submit(SMALL).result(60)


def test_a_full_disk_fails_the_job_keeps_what_was_saved_and_goes_on_when_there_is_room(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(data)], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        engine = Engine(stub.house(tmp_path), spine=stub.spine)
        try:
            job = engine.submit(Request(prompt="x", seed=3, steps=1, n_iter=4, width=512, height=512))     # 0.8 MB each
            with pytest.raises(DiskFullError):
                job.result(60)
            kept = list(job.pictures())
            assert job.state == "failed" and 1 <= len(kept) < 4
            assert not list(data.rglob("*.part"))
            for row in kept:
                metadata.pixels(data / row.path)
                shutil.move(data / row.path, tmp_path / f"{row.index}.png")
            small = engine.submit(SMALL)
            assert len(small.result(60).pictures) == 1
        finally:
            engine.close()
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def test_an_output_folder_that_was_removed_is_made_again(engine, tmp_path):
    engine.submit(SMALL).result(60)
    shutil.rmtree(tmp_path / "data" / "outputs")
    assert engine.submit(SMALL).result(60).pictures[0].path.is_file()


# ---- waiting

def test_waiting_holds_no_thread_and_one_who_gives_up_changes_nothing_for_the_others(engine):
    async def wait():
        job = engine.submit(Request(prompt="x", steps=100, n_iter=2, width=64, height=64))
        before = threading.active_count()
        waiters = [asyncio.ensure_future(job.done()) for _ in range(50)]
        await asyncio.sleep(0.05)
        assert threading.active_count() <= before
        waiters[0].cancel()
        results = await asyncio.gather(*waiters[1:])
        assert {len(result.pictures) for result in results} == {2}
        assert job.state == "done"

    asyncio.run(asyncio.wait_for(wait(), 120))


def test_a_result_is_read_back_from_disk_by_the_id_of_the_job(engine, tmp_path):
    job = engine.submit(SMALL, task_id="task(mine)")
    first = job.result(60)
    job_id, file = job.id, first.pictures[0].file
    del job, first
    assert engine.task("task(mine)").id == job_id
    assert engine.job(job_id).result(1).pictures[0].file == file
    engine.close()
    again = Engine(stub.house(tmp_path), spine=stub.spine)
    try:
        assert again.job(job_id).result(1).pictures[0].file == file
        assert asyncio.run(again.job(job_id).done()).pictures[0].sha256
    finally:
        again.close()


def test_pictures_that_are_not_to_be_saved_stay_in_the_spool_until_its_cap(engine, tmp_path):
    engine._delivery._files = 3
    jobs = [engine.submit(SMALL, save=False) for _ in range(5)]
    for job in jobs:
        assert job.result(60).pictures[0].path is None
    engine.submit(SMALL).result(60)
    assert len(list((tmp_path / "data" / "spool").iterdir())) == 3
    with pytest.raises(NotFoundError):
        engine.tools.picture_file(jobs[0].id, 0)
    assert engine.tools.picture_file(jobs[-1].id, 0).is_file()
    assert not list((tmp_path / "data" / "outputs").rglob("*.png"))[1:]


def test_closing_interrupts_the_running_job_keeps_the_waiting_ones_and_tells_who_waits(tmp_path):
    engine = Engine(stub.house(tmp_path), spine=stub.spine)
    running = engine.submit(Request(prompt="x", steps=100, n_iter=50, width=64, height=64))
    waiting = engine.submit(SMALL)
    while not running.pictures():
        pass
    engine.close()
    for job in (running, waiting):
        with pytest.raises(BusyError):
            job.result(5)
    with pytest.raises(BusyError):
        engine.submit(SMALL)
    again = Engine(stub.house(tmp_path), spine=stub.spine)
    try:
        assert again.job(running.id).state == "interrupted"
        assert len(again.job(waiting.id).result(60).pictures) == 1
    finally:
        again.close()


def test_an_engine_of_one_command_leaves_alone_what_waits_from_before(tmp_path):
    engine = Engine(stub.house(tmp_path), spine=stub.spine)
    engine._worker.wake = lambda: None
    old = engine.submit(SMALL)
    engine.close()
    again = Engine(stub.house(tmp_path), spine=stub.spine, whole_queue=False)
    try:
        again.submit(SMALL).result(60)
        assert again.job(old.id).state == "pending"
    finally:
        again.close()


def test_a_second_easel_on_one_data_folder_is_refused_and_finds_the_first(tmp_path):
    paths = stub.house(tmp_path)
    engine = Engine(paths, spine=stub.spine, address="http://127.0.0.1:7860")
    try:
        with pytest.raises(BusyError, match="7860"):
            Engine(paths, spine=stub.spine)
        assert serving(paths) == "http://127.0.0.1:7860"
    finally:
        engine.close()
    assert serving(paths) == ""
    Engine(paths, spine=stub.spine).close()


# ---- with a real model

def test_a_truncated_checkpoint_fails_its_job_in_a_sentence_and_the_next_one_is_good(real):
    folder = real.paths.checkpoints[0]
    (folder / "cut.safetensors").write_bytes((folder / "tiny.safetensors").read_bytes()[:200_000])
    real.tools.checkpoints(refresh=True)
    bad = real.submit(Request(prompt="x", checkpoint="cut", steps=1, width=64, height=64))
    good = real.submit(Request(prompt="x", checkpoint="tiny", steps=1, width=64, height=64))
    with pytest.raises(Exception) as caught:
        bad.result(60)
    assert bad.error.code == "bad_checkpoint" and "cut.safetensors" in str(caught.value)
    assert len(good.result(60).pictures) == 1
    (folder / "cut.safetensors").unlink()
    real.tools.checkpoints(refresh=True)


def test_what_a_format_cannot_hold_is_a_warning_of_the_result(real):
    job = real.submit(dataclasses.replace(SMALL, prompt="x, " * 20_000, steps=1, image_format="jpg"))
    [warning] = job.result(120).warnings
    assert "PNG can hold" in warning and job.warnings == (warning,)


def test_four_clients_at_once_each_get_their_own_pictures(real):
    """What each asked for alone is the oracle of what it gets among the others."""
    asked = {(client, number): dataclasses.replace(SMALL, prompt=f"client {client}", seed=9 * client + number, width=(64, 128)[number % 2])
             for client in range(4) for number in range(4)}
    got, lock = {}, threading.Lock()

    def client(name):
        for number in range(4):
            result = real.submit(asked[name, number], save=False).result(200)
            with lock:
                got[name, number] = result.pictures

    threads = [threading.Thread(target=client, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(280)
    assert got.keys() == asked.keys()
    for key, request in asked.items():
        [picture] = got[key]
        assert f"Seed: {request.seed}, Size: {request.width}x64" in picture.infotext and picture.prompt == request.prompt
    for key in random.Random(0).sample(sorted(asked), 4):
        assert real.submit(asked[key], save=False).result(60).pictures[0].sha256 == got[key][0].sha256


def test_warming_ends_with_everything_ready(real):
    real.warm()
    for _ in range(600):
        if dict(real.readiness())["model"] == "ready":
            break
        threading.Event().wait(0.1)
    assert (("torch", "ready"), ("model", "ready")) == real.readiness()[:2]
