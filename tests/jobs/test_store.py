"""The job table: claimed once, ended once, and true after the program died."""
import sqlite3
import threading

import pytest

from modules.core.errors import BusyError, NotFoundError, SaveError
from modules.jobs import store as states
from modules.jobs.store import PictureRow, Store


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "easel.db", cap=1000)
    yield made
    made.close()


def picture(job, index, **more):
    return PictureRow(**{"job": job, "index": index, "place": "outputs", "path": f"outputs/{index}.png", "sha256": "0" * 64, "seed": index,
                         "subseed": 0, "infotext": "a boat", "width": 8, "height": 8, "complete": True, **more})


@pytest.mark.parametrize("shared", [True, False])
def test_eight_threads_claim_each_of_fifty_jobs_exactly_once(tmp_path, shared):
    first = Store(tmp_path / "easel.db")
    ids = [first.add("txt2img", {"seed": number}, {}).id for number in range(50)]
    claimed, lock = [], threading.Lock()

    def take():
        mine = first if shared else Store(tmp_path / "easel.db")
        while (row := mine.claim()) is not None:
            with lock:
                claimed.append(row.id)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(claimed) == sorted(ids)


def test_jobs_are_claimed_in_the_order_of_their_coming(store):
    ids = [store.add("txt2img", {}, {}).id for _ in range(5)]
    assert [store.claim().id for _ in range(5)] == ids
    assert store.claim() is None


def test_only_the_named_jobs_are_claimed_when_names_are_given(store):
    store.add("txt2img", {}, {})
    mine = store.add("txt2img", {}, {}).id
    assert store.claim({mine}).id == mine
    assert store.claim({mine}) is None


def test_a_job_ends_once_and_keeps_its_first_end(store):
    job = store.add("txt2img", {}, {}, warnings=("an old file",)).id
    assert not store.finish(job, states.DONE)               # it does not run yet
    store.claim()
    assert store.finish(job, states.FAILED, error_code="nan", error="No numbers.", warnings=("another",))
    assert not store.finish(job, states.DONE)
    row = store.job(job)
    assert (row.state, row.error_code, row.error, row.warnings) == ("failed", "nan", "No numbers.", ("an old file", "another"))


def test_a_waiting_job_can_be_cancelled_and_a_running_one_not_this_way(store):
    job = store.add("txt2img", {}, {}).id
    assert store.cancel_pending(job)
    assert not store.cancel_pending(job)
    assert store.claim() is None
    running = store.add("txt2img", {}, {}).id
    store.claim()
    assert not store.cancel_pending(running)


def test_what_ran_when_the_program_died_is_interrupted_and_parked_the_second_time(tmp_path):
    store = Store(tmp_path / "easel.db")
    job = store.add("txt2img", {"prompt": "x"}, {}).id
    waiting = store.add("txt2img", {}, {}).id
    store.claim({job})
    again = Store(tmp_path / "easel.db")
    assert [(row.id, row.state) for row in again.recover()] == [(job, "interrupted")]
    assert again.job(waiting).state == "pending"
    again.resume(job)
    again.claim({job})
    assert [(row.id, row.state) for row in again.recover()] == [(job, "parked")]
    with pytest.raises(BusyError, match="parked"):
        again.resume(job)
    assert again.resume(job, force=True).state == "pending"


@pytest.mark.parametrize("end", [states.FAILED, states.CANCELLED, states.INTERRUPTED])
def test_an_unfinished_job_can_be_resumed_and_a_done_one_not(store, end):
    job = store.add("txt2img", {}, {}).id
    store.claim()
    with pytest.raises(BusyError):
        store.resume(job)
    store.finish(job, end)
    assert store.resume(job).state == "pending"
    store.claim()
    store.finish(job, states.DONE)
    with pytest.raises(BusyError):
        store.resume(job)


def test_the_request_comes_back_as_it_went_in(store):
    request = {"prompt": "Ein Boot 🚤\n\t\"quoted\" \\ 雪", "seed": 2**64 - 1, "cfg_scale": 7.5, "styles": ["a"],
               "extra": {"x": {"y": [1, None]}}}
    row = store.add("txt2img", request, {"samples_format": "webp"}, save=False, task_id="task(1)")
    assert (row.request, row.settings, row.save, row.task_id) == (request, {"samples_format": "webp"}, False, "task(1)")
    assert store.by_task("task(1)").id == row.id
    assert store.by_task("task(2)") is None


def test_a_full_queue_refuses_the_next_job_and_takes_it_when_there_is_room(tmp_path):
    store = Store(tmp_path / "easel.db", cap=3)
    jobs = [store.add("txt2img", {}, {}).id for _ in range(3)]
    with pytest.raises(BusyError, match="full"):
        store.add("txt2img", {}, {})
    store.cancel_pending(jobs[0])
    store.add("txt2img", {}, {})


def test_an_incomplete_picture_gives_way_to_the_complete_one(store):
    job = store.add("txt2img", {}, {}).id
    store.add_picture(picture(job, 0, complete=False))
    store.add_picture(picture(job, 0))
    assert [row.complete for row in store.pictures(job)] == [True]
    with pytest.raises(NotFoundError):
        store.picture(job, 1)


def test_seeds_up_to_64_bits_are_kept(store):
    job = store.add("txt2img", {}, {}).id
    store.add_picture(picture(job, 0, seed=2**64 - 1, subseed=2**63))
    assert (store.picture(job, 0).seed, store.picture(job, 0).subseed) == (2**64 - 1, 2**63)


def test_pruning_keeps_the_newest_and_the_unfinished_and_gives_the_room_back(tmp_path):
    store = Store(tmp_path / "easel.db")
    waiting = store.add("txt2img", {}, {}).id
    for _ in range(300):
        job = store.add("txt2img", {"prompt": "x" * 2000}, {}).id
        store.claim({job})
        store.add_picture(picture(job, 0, infotext="y" * 2000))
        store.finish(job, states.DONE)
    assert store.prune(keep=10) == 290
    assert store.job(waiting).state == "pending"
    assert len(store.jobs(limit=1000)) == 11
    assert store.sound()
    store.close()
    assert (tmp_path / "easel.db").stat().st_size / 11 <= 12_000


def test_a_table_of_a_later_version_or_no_table_is_refused_in_a_sentence(tmp_path):
    Store(tmp_path / "new.db").close()
    with sqlite3.connect(tmp_path / "new.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    (tmp_path / "none.db").write_bytes(b"this is no database at all, only text" * 100)
    for name in ("new.db", "none.db"):
        with pytest.raises(SaveError, match="job table"):
            Store(tmp_path / name)


def test_no_method_finds_a_job_that_is_not_there(store):
    for ask in (store.job, store.resume):
        with pytest.raises(NotFoundError):
            ask("nothing")
