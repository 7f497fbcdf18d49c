"""Kinetics-700 has 650,000 videos: their records must fit in memory, once for all workers of a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 650_000

SCRIPT = """
import json, os, sys, time
import numpy as np
import pyarrow as pa, pyarrow.parquet as pq
from gcvideo.data.annotations import load_records

def private_megabytes():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))) / 1024

index, count = sys.argv[1], int(sys.argv[2])
before = private_megabytes()
start = time.perf_counter()
records = load_records(index)
order = np.random.default_rng([0, 0]).permutation(len(records))  # one epoch, shuffled
share = records.select(np.sort(order[: count // 8]))  # one of eight ranks
seconds = time.perf_counter() - start
report = {"seconds": seconds, "loaded": private_megabytes() - before, "share": len(share), "workers": []}
for _ in range(4):
    reading, writing = os.pipe()
    if os.fork() == 0:
        at_first = private_megabytes()
        total = sum(len(records[int(i)].path) for i in order[:50_000])  # what a worker does in an epoch
        os.write(writing, json.dumps(private_megabytes() - at_first).encode())
        os._exit(0)
    os.wait()
    report["workers"].append(json.loads(os.read(reading, 100)))
# Not ru_maxrss, which a process takes over from the one that started it.
status = dict(line.split(":") for line in open("/proc/self/status").read().splitlines())
report["peak"] = int(status["VmHWM"].split()[0]) / 1024
print(json.dumps(report))
"""


def write_index(path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = [f"{number:011x}_{number % 290:06d}_{number % 290 + 10:06d}" for number in range(COUNT)]
    columns = {
        "id": ids,
        "path": [f"train/some class {number % 700}/{name}.mp4" for number, name in enumerate(ids)],
        "label": np.arange(COUNT, dtype=np.int32) % 700,
    }
    pq.write_table(pa.table(columns), path)


@pytest.mark.slow
def test_650_000_records_take_little_memory_and_workers_share_them(tmp_path):
    write_index(tmp_path / "k700.parquet")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "k700.parquet"), str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    report = json.loads(done.stdout)
    print(report)  # the measurements, with pytest -s
    assert report["share"] == COUNT // 8
    assert report["peak"] < 1000  # MB, of the whole process with all its libraries
    assert report["loaded"] < 400
    assert max(report["workers"]) < 40  # a copy of the records would be more than a hundred
