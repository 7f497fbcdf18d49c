"""Order, shares and resumption of batches; and loaders that outlive their workers."""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import multiprocessing
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data import dataset as dataset_module
from gcvideo.data.dataset import ClipBatch, ClipDataset, ViewDataset, make_views
from gcvideo.data.loader import Prefetcher, epoch_order, eval_loader, train_loader
from gcvideo.data.records import Failure, RecordTable
from gcvideo.data.worker_pool import WorkerPool
from gcvideo.errors import DataError, VideoError
from tests.processes import run_apart, wait

DATA = DataConfig(frames=2, stride=1, crop=8, short_side=(8, 8), flip=0.0, video_timeout=0.6, worker_memory=1.0)


class FakeVideo:
    """Twenty frames, each pixel the number of the video; some numbers do harm when they are opened."""

    def __init__(self, path: str, backend: str, harm: dict[int, Any]) -> None:
        self.number = int(Path(path).stem)
        self.height, self.width, self.fps = 8, 12, 25.0
        self.times = np.arange(20) / 25
        act = harm.get(self.number)
        if isinstance(act, dict):
            act = act.get(backend)
        if isinstance(act, signal.Signals):
            os.kill(os.getpid(), act)
            time.sleep(10)
        elif act == "sleep":
            time.sleep(60)
        elif act == "exit":
            os._exit(3)
        elif act == "error":
            raise VideoError(path, "broken on purpose")
        elif act == "bug":
            raise ZeroDivisionError("a bug in the decoder")
        self.moody = act == "moody"
        if act == "memory":
            np.zeros(3 << 30, dtype=np.uint8)  # three times what DATA allows; costs nothing until touched

    def __len__(self) -> int:
        return 20

    def frames(self, indices: Any, box: Any = (0, 0, 8, 12)) -> np.ndarray:
        if self.moody and indices[0] % 2:
            raise VideoError(f"{self.number}.mp4", "broken at odd places")
        return np.full((len(indices), *box[2:], 3), self.number % 256, dtype=np.uint8)

    def __enter__(self) -> FakeVideo:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def harm(monkeypatch) -> dict[int, Any]:
    """Video number -> what happens when it is opened."""
    acts: dict[int, Any] = {}
    monkeypatch.setattr(dataset_module, "open_video", lambda path, *, backend, **_: FakeVideo(path, backend, acts))
    return acts


def records(count: int) -> RecordTable:
    names = [f"{number}.mp4" for number in range(count)]
    return RecordTable(ids=names, paths=names, labels=range(count), source="made.txt")


def clips(count: int, **options: Any) -> ClipDataset:
    return ClipDataset(records(count), data=DATA, seed=1, **options)


def same(a: ClipBatch, b: ClipBatch) -> bool:
    return torch.equal(a.clips, b.clips) and torch.equal(a.labels, b.labels) and torch.equal(a.indices, b.indices)


# --- order ---


def test_an_epoch_is_one_permutation_per_seed_and_epoch():
    order = epoch_order(103, seed=1, epoch=0, global_batch=10)
    assert len(order) == 100
    assert len(set(order.tolist())) == 100
    assert order.tolist() != sorted(order.tolist())
    assert epoch_order(103, seed=1, epoch=0, global_batch=4)[:100].tolist() == order.tolist()
    assert epoch_order(103, seed=1, epoch=1, global_batch=10).tolist() != order.tolist()
    assert epoch_order(103, seed=2, epoch=0, global_batch=10).tolist() != order.tolist()


def test_a_set_smaller_than_a_batch_fills_one_step():
    order = epoch_order(3, seed=0, epoch=0, global_batch=8)
    assert len(order) == 8
    assert sorted(order[:3].tolist()) == [0, 1, 2]
    assert (order[3:6] - order[:3]).tolist() == [3, 3, 3]  # the same records, in slots of their own
    assert (order[6:] - order[:2]).tolist() == [6, 6]


def test_every_step_holds_the_same_clips_however_it_is_shared_out(harm):
    order = epoch_order(50, seed=3, epoch=2, global_batch=8)

    def step(number, world_size, accumulate):
        held = []
        for rank in range(world_size):
            loader = train_loader(
                clips(50), batch_size=8 // world_size // accumulate, accumulate=accumulate, seed=3, epoch=2,
                rank=rank, world_size=world_size,
            )  # fmt: skip
            assert len(loader) == 6 * accumulate
            batches = list(loader)[number * accumulate : (number + 1) * accumulate]
            held += [index for batch in batches for index in batch.indices.tolist()]
        return held

    for world_size, accumulate in [(1, 1), (1, 4), (2, 1), (4, 2)]:
        assert step(4, world_size, accumulate) == order[32:40].tolist()


def test_loader_starts_at_any_step(harm):
    whole = list(train_loader(clips(40), batch_size=3, accumulate=2, seed=0, epoch=5))
    for start in (0, 1, 4, 6):
        rest = list(train_loader(clips(40), batch_size=3, accumulate=2, seed=0, epoch=5, start_step=start))
        assert len(rest) == len(whole) - 2 * start
        assert all(same(a, b) for a, b in zip(rest, whole[2 * start :], strict=True))


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_identical_for_any_number_of_workers(harm, workers):
    harm.update({5: "error", 11: "error"})
    plain = list(train_loader(clips(40), batch_size=4, seed=0, epoch=0))
    assert sum(len(batch.failures) for batch in plain) == 2
    ours = list(train_loader(clips(40), batch_size=4, seed=0, epoch=0, workers=workers))
    assert all(same(a, b) and a.failures == b.failures for a, b in zip(ours, plain, strict=True))


def test_batch_types(harm):
    batch = next(iter(train_loader(clips(8), batch_size=4, seed=0, epoch=0, workers=1)))
    assert batch.clips.dtype == torch.uint8
    assert batch.clips.shape == (4, 3, 2, 8, 8)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    assert (batch.clips[:, 0, 0, 0, 0].long() == batch.labels).all()


def test_abandoned_loader_leaves_no_process_behind(harm):
    iterator = iter(train_loader(clips(40), batch_size=4, seed=0, epoch=0, workers=2))
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


# --- evaluation ---


@pytest.mark.parametrize("workers", [0, 2])
def test_every_video_is_on_exactly_one_process(harm, workers):
    dataset = ViewDataset(records(11), data=DATA, test=TestConfig(clips=2, crops=1, short_side=8, crop=8))
    shares = [list(eval_loader(dataset, rank=rank, world_size=3, workers=workers)) for rank in range(3)]
    assert [[views.index for views in share] for share in shares] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]
    assert len(eval_loader(dataset, rank=2, world_size=3)) == 3
    views = shares[1][2]
    assert (views.id, views.label) == ("7.mp4", 7)
    assert (make_views(views) == 7).all()


def test_finished_videos_are_skipped(harm):
    dataset = ViewDataset(records(6), data=DATA, test=TestConfig(clips=1, crops=1, short_side=8, crop=8))
    assert [views.index for views in eval_loader(dataset, skip={0, 4})] == [1, 2, 3, 5]
    assert [views.index for views in eval_loader(dataset, rank=1, world_size=2, skip=[1, 2])] == [3, 5]


def test_evaluation_names_the_videos_that_kill_workers(harm):
    harm.update({2: signal.SIGSEGV, 5: "error", 6: "sleep"})
    dataset = ViewDataset(records(9), data=DATA, test=TestConfig(clips=1, crops=1, short_side=8, crop=8))
    everything = list(eval_loader(dataset, workers=2))
    assert [views.index for views in everything] == list(range(9))
    failures = {views.index: views.failure.reason for views in everything if views.failure}
    assert failures == {
        2: "its process died of SIGSEGV",
        5: "broken on purpose",
        6: "took longer than 0.6 s",
    }


# --- survival ---


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_all_batches_arrive_once_and_in_order_whoever_dies(harm, workers, tmp_path):
    harm.update({37: signal.SIGSEGV, 60: signal.SIGABRT, 61: signal.SIGKILL, 62: "exit", 90: "sleep", 95: "error"})
    path = tmp_path / "quarantine.jsonl"
    dataset = clips(120, quarantine=path)
    batches = list(train_loader(dataset, batch_size=8, seed=0, epoch=0, workers=workers))
    order = epoch_order(120, seed=0, epoch=0, global_batch=8)
    # The next good record fills the slot of a bad one.
    filled = {37: 38, 60: 63, 61: 63, 62: 63, 90: 91, 95: 96}
    assert torch.cat([batch.indices for batch in batches]).tolist() == [filled.get(i, i) for i in order.tolist()]
    reasons = {
        "37.mp4": "its process died of SIGSEGV",
        "60.mp4": "its process died of SIGABRT",
        "61.mp4": "its process died of SIGKILL",
        "62.mp4": "its process ended with exit code 3",
        "90.mp4": "took longer than 0.6 s",
        "95.mp4": "broken on purpose",
    }
    assert {failure.id: failure.reason for batch in batches for failure in batch.failures} == reasons
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert {entry["id"]: entry["reason"] for entry in written} == reasons
    assert len(written) == len(reasons)
    # A run that starts with this file meets no harm, and sees the same clips.
    resumed = list(train_loader(clips(120, quarantine=path), batch_size=8, seed=0, epoch=0))
    assert all(same(a, b) and a.failures == b.failures for a, b in zip(resumed, batches, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 3])
def test_a_run_resumed_among_half_damaged_videos_sees_the_same_clips(harm, tmp_path, workers):
    """Videos 3, 4 and 9 can be read in some places only: bad at one time, good at another."""
    harm.update(dict.fromkeys([3, 4, 9], "moody"))

    def epoch(number, path, *, start_step=0, workers=0):
        dataset = clips(24, quarantine=path)
        return list(train_loader(dataset, batch_size=4, seed=0, epoch=number, start_step=start_step, workers=workers))

    whole = [epoch(number, tmp_path / "a.jsonl") for number in range(4)]
    named = [{failure.id for batch in batches for failure in batch.failures} for batches in whole]
    assert any(named)
    assert all(earlier <= later for earlier, later in zip(named, named[2:], strict=False))  # known from then on
    # Stopped at any time, the run has written no less into its file than it had at its last checkpoint.
    for number in range(4):
        for start in (0, 2, 5):
            part = epoch(number, tmp_path / "a.jsonl", start_step=start, workers=workers)
            for ours, theirs in zip(part, whole[number][start:], strict=True):
                assert same(ours, theirs)
                assert ours.failures == theirs.failures


def test_a_death_in_an_epoch_that_is_read_ahead_changes_nothing_in_the_one_before(harm, tmp_path):
    dataset = clips(4, quarantine=tmp_path / "a.jsonl")
    first, second = (train_loader(dataset, batch_size=1, seed=0, epoch=epoch, workers=1) for epoch in (0, 1))
    wanted = list(first)
    late = wanted[-1].indices.item()
    pool = second.make_pool()
    harm[late] = signal.SIGKILL
    assert len(list(second.stream(pool))) == 4
    pool.close()
    assert dataset.quarantine.is_bad(late, 1)
    assert not dataset.quarantine.is_bad(late, 0)
    harm.clear()
    # Nor in a run that is resumed in that epoch.
    resumed = train_loader(clips(4, quarantine=tmp_path / "a.jsonl"), batch_size=1, seed=0, epoch=0, start_step=3)
    assert same(next(iter(resumed)), wanted[-1])


def test_a_video_that_one_decoder_dies_of_is_read_by_the_other(harm):
    harm[3] = {"auto": signal.SIGSEGV}
    dataset = clips(8)
    (batch,) = train_loader(dataset, batch_size=8, seed=0, epoch=0, workers=2)
    assert sorted(batch.indices.tolist()) == list(range(8))
    assert batch.failures == []
    assert not dataset.quarantine.is_bad(3, 99)


def test_memory_is_bounded(harm):
    harm[3] = "memory"
    (batch,) = train_loader(clips(8), batch_size=8, seed=0, epoch=0, workers=1)
    assert batch.failures == [Failure("3.mp4", "3.mp4", "needs more memory than a worker process may use")]


@pytest.mark.parametrize("workers", [0, 1])
def test_bugs_are_not_taken_for_bad_videos(harm, workers):
    harm[3] = "bug"
    with pytest.raises(ZeroDivisionError, match="a bug in the decoder"):
        list(train_loader(clips(8), batch_size=8, seed=0, epoch=0, workers=workers))


def test_unreadable_data_ends_the_run_with_its_own_error(harm):
    harm.update(dict.fromkeys(range(4), "error"))
    with pytest.raises(DataError, match=r"made.txt: no video can be read"):
        list(train_loader(clips(4), batch_size=2, seed=0, epoch=0, workers=2))


def kill_itself(task, hold):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(task, hold):
    time.sleep(60)


@pytest.mark.parametrize(("work", "how"), [(kill_itself, "SIGKILL"), (hang, "longer than 0.2 s")])
def test_workers_that_die_without_a_video_end_the_run(work, how):
    pool = WorkerPool(work, workers=2, on_death=lambda *_: None, time_limit=0.2, memory_limit=1 << 30)
    with pytest.raises(RuntimeError, match=f"data workers keep dying .*{how}"):
        list(pool.map(range(4)))
    assert multiprocessing.active_children() == []


def test_loader_runs_in_a_thread(harm):
    harm[3] = signal.SIGSEGV
    found: list[int] = []
    loader = train_loader(clips(16), batch_size=4, seed=0, epoch=0, workers=2)
    thread = threading.Thread(target=lambda: found.extend(i for batch in loader for i in batch.indices.tolist()))
    thread.start()
    thread.join(timeout=30)
    assert sorted(found) == sorted([*range(3), 4, *range(4, 16)])


def test_idle_worker_killed_from_outside_is_replaced_and_nobody_blamed():
    blamed = []
    pool = WorkerPool(
        lambda task, hold: (task, torch.full((3,), task)),
        workers=2,
        on_death=lambda *death: blamed.append(death),
        time_limit=1,
        memory_limit=1 << 30,
    )
    seen = []
    for number, tensor in pool.map(range(30)):
        assert (tensor == number).all()
        seen.append(number)
        if number % 10 == 0:
            os.kill(pool._running[0].process.pid, signal.SIGKILL)
            time.sleep(0.02)
    assert seen == list(range(30))
    assert blamed == []


def test_results_of_every_size_and_type_arrive_unchanged():
    def make(task, hold):
        rng = np.random.default_rng(task)
        return {
            "frames": torch.from_numpy(rng.integers(0, 256, (task, 7, 3), dtype=np.uint8)),
            "channels last": torch.from_numpy(rng.random((1, 2, 5, 7, 3))).permute(0, 4, 1, 2, 3),
            "float": torch.from_numpy(rng.random(task)).transpose(0, 0),
            "text": str(task),
            "nested": [torch.tensor(task), None],
        }

    pool = WorkerPool(make, workers=2, on_death=lambda *_: None, time_limit=5, memory_limit=1 << 30)
    sizes = [5, 0, 100_000, 1, 3, 70_000, 2]
    for size, got in zip(sizes, pool.map(sizes), strict=True):
        want = make(size, None)
        assert got["text"] == want["text"]
        for name in ("frames", "channels last", "float"):
            assert torch.equal(got[name], want[name])
        assert got["channels last"].is_contiguous(memory_format=torch.channels_last_3d)
        assert got["nested"][0].item() == size


def private_memory() -> int:
    """Bytes of this process that no other one shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_the_time_waited_is_read_once_the_device_has_done_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waits.append)
    batches = Prefetcher(iter(()), torch.device("meta"))
    batches.reset()
    assert not waits
    batches.reset(finish=True)
    assert waits == [torch.device("meta")]


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's account of memory")
def test_workers_share_the_records_and_copy_none():
    table = records(650_000)
    size = table._ids.nbytes + table._paths.nbytes + table.labels.nbytes

    def read_all(task, hold):
        before = private_memory()
        for index in range(task, len(table), 7):
            assert table[index].label == index
        return private_memory() - before

    pool = WorkerPool(read_all, workers=2, on_death=lambda *_: None, time_limit=60, memory_limit=1 << 30)
    assert max(pool.map(range(2))) < size / 4


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_workers_use_freed_memory_again():
    def fill(task, hold):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            [np.full(19 << 20, 1, np.uint8) for _ in range(3)]  # glibc by itself keeps two of them
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pool = WorkerPool(fill, workers=1, on_death=lambda *_: None, time_limit=60, memory_limit=1 << 30)
    first, second = pool.map(range(2))
    assert second < first / 10


def map_and_die():
    """SIGTERM for the whole process group, and later SIGKILL for this process."""
    signal.signal(signal.SIGTERM, lambda *_: None)

    def work(task, hold):
        hold(task)
        time.sleep(0.01)
        return task, os.getpid()

    pool = WorkerPool(
        work, workers=2, on_death=lambda *death: print("blamed", death), time_limit=9, memory_limit=1 << 30
    )
    pids = set()
    for number, (task, pid) in enumerate(pool.map(range(40))):
        assert number == task
        pids.add(pid)
        if number == 3:
            os.killpg(0, signal.SIGTERM)
        if number == 20:
            print(len(pids), *pids, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_workers_leave_signals_to_the_main_process_and_end_with_it(tmp_path):
    """SIGTERM to a whole process group, as job schedulers send it, must not look like a crashing decoder."""
    output = tmp_path / "output.txt"
    assert wait([run_apart(map_and_die, output=output)]) == [-signal.SIGKILL], output.read_text()
    count, *pids = output.read_text().split()
    assert (count, len(pids)) == ("2", 2)
    deadline = time.time() + 15
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in pids) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids)


def test_workers_stay_from_one_stream_to_the_next_and_read_ahead_into_it() -> None:
    begun = np.frombuffer(mmap.mmap(-1, 8), dtype=np.int64)

    def work(task: int, hold: Any) -> tuple[int, int]:
        begun[0] = max(begun[0], task)
        return os.getpid(), task

    pool = WorkerPool(work, workers=2, on_death=lambda *_: None)
    first, second = pool.stream(range(1, 7)), pool.stream(range(11, 15))
    found = list(itertools.islice(first, 5))
    while not begun[0] > 10:  # behind the last of the first stream
        time.sleep(0.001)
    assert [task for _, task in [*found, *first, *second]] == [*range(1, 7), *range(11, 15)]
    assert pool.rate() > 0
    next(pool.stream(range(20, 40)))
    pool.close()  # in the middle of a stream
    assert [task for _, task in pool.map(range(50, 54))] == [*range(50, 54)]
    assert multiprocessing.active_children() == []


def test_a_worker_whose_decoder_leaks_is_replaced_before_memory_is_short() -> None:
    kept = []

    def work(task: int, hold: Any) -> int:
        kept.append(mmap.mmap(-1, task << 20))  # not of the memory that malloc keeps
        return os.getpid()

    pool = WorkerPool(work, workers=1, on_death=lambda *_: None, memory_limit=256 << 20)
    first, second, third = pool.map([1, 160, 1])
    assert first == second != third


def test_large_results_stay_in_page_locked_memory_until_the_next_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors are copied; results that come out of order, or after a death, are as they were sent."""
    locked: list[np.ndarray] = []
    monkeypatch.setattr("gcvideo.data.worker_pool.page_lock", locked.append)

    def work(task: int, hold: Any) -> tuple[torch.Tensor, torch.Tensor]:
        hold(task)
        if task == 3 and died.value == 0:
            died.value = 1
            os._exit(1)
        time.sleep(0.05 if task % 4 == 0 else 0)
        return torch.full((2**20 + task,), task, dtype=torch.uint8), torch.tensor([task])

    died = multiprocessing.Value("i", 0)
    pool = WorkerPool(work, workers=2, on_death=lambda *_: None, pin_memory=True)
    small = []
    for task, (large, number) in enumerate(pool.map(range(12))):
        assert large.shape == (2**20 + task,)
        assert (large == task).all()
        assert any(array.ctypes.data <= large.data_ptr() < array.ctypes.data + array.nbytes for array in locked)
        small.append(number)
    assert torch.cat(small).tolist() == list(range(12))
