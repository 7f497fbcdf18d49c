"""Memory, /dev/shm and file descriptors that the loaders of a machine need, and the clips/s that they read.

``python -m tests.node_needs [PROCESSES] [WORKERS] [FOLDER]`` prints them for 8 processes with 12 workers each, which
read clips of ``kinetics400/slow_r50_8x8`` (8 clips a process and step) from the videos of a folder, or from 12 that are
made; they stand for the 240,000 of Kinetics-400. Linux only.
"""

import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path

from gcvideo import distributed
from gcvideo.config import load_config
from gcvideo.data.dataset import ClipDataset
from gcvideo.data.loader import train_loader
from gcvideo.data.records import RecordTable
from tests.processes import start_ranks, wait
from tests.videos import moving_frames, write_video


def _own_needs() -> dict[str, float]:
    """Of this process and its workers."""
    family = [Path("/proc/self"), *(Path(f"/proc/{child.pid}") for child in multiprocessing.active_children())]
    descriptors = [[*Path(process, "fd").iterdir()] for process in family]
    batches = [file.stat() for file in descriptors[0] if file.is_symlink() and "memfd:batch" in str(file.readlink())]
    sizes = {batch.st_ino: batch.st_size for batch in batches}  # a mapped file has two descriptors
    return {
        "workers": len(family) - 1,
        "memory, shared parts divided, GB": sum(map(_pss, family)) / 1e9,
        "of it batches on their way, GB": sum(sizes.values()) / 1e9,
        "file descriptors of the main process": len(descriptors[0]),
        "file descriptors of all": sum(map(len, descriptors)),
    }


def _pss(process: Path) -> int:
    """Proportional set size in bytes: memory that n processes share counts to each as an n-th."""
    rows = (process / "smaps_rollup").read_text().splitlines()
    return next(1024 * int(row.split()[1]) for row in rows if row.startswith("Pss:"))


def _run(workers: int, folder: str) -> None:
    with distributed.init_from_env():
        paths = sorted(map(str, Path(folder).iterdir()))
        rows = range(240_000)
        records = RecordTable(
            ids=[f"{row:011}" for row in rows],
            paths=[paths[row % len(paths)] for row in rows],
            labels=[row % 400 for row in rows],
        )
        config = load_config("kinetics400/slow_r50_8x8.yaml")
        loader = train_loader(
            ClipDataset(records, data=config.data, seed=0),
            batch_size=8,
            seed=0,
            epoch=0,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=workers,
        )
        batches = iter(loader)
        for _ in range(2 * workers):  # until every worker has filled each of its places
            next(batches)
        distributed.agree(0)
        began = time.perf_counter()
        for _ in range(2 * workers):
            next(batches)
        distributed.agree(0)
        rate = 16 * workers * distributed.world_size() / (time.perf_counter() - began)
        needs = distributed.gather_objects(_own_needs())
        if distributed.is_main():
            print("one process", *(f"{name}: {value:.4g}" for name, value in needs[0].items()), sep="\n  ")
            print("the machine", *(f"{name}: {sum(n[name] for n in needs):.4g}" for name in needs[0]), sep="\n  ")
            print(f"{rate:.1f} clips/s are read by all")
            print(f"/dev/shm in use: {shutil.disk_usage('/dev/shm').used / 1e6:.1f} MB")
        distributed.agree(0)


if __name__ == "__main__":
    processes, workers = (int(word) for word in [*sys.argv[1:3], *("8", "12")[len(sys.argv[1:3]) :]])
    with tempfile.TemporaryDirectory() as place:
        for number in range(12 * (len(sys.argv) < 4)):
            write_video(f"{place}/{number}.mp4", moving_frames(250, 256, 340, seed=number), gop=250)
        folder = sys.argv[3] if len(sys.argv) > 3 else place
        sys.exit(any(wait(start_ranks(_run, workers, folder, processes=processes), 1200)))
