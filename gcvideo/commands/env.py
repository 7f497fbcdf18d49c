"""``gcvideo env``: what a bug report needs: versions, decoders, devices, cores and limits of this machine."""

import argparse
import os
import resource
import shutil
from importlib import metadata
from pathlib import Path

import av
import torch
from torch.utils import collect_env

from gcvideo import device as runtime
from gcvideo import distributed
from gcvideo.files import write_json
from gcvideo.video.reader import why_missing


def run(args: argparse.Namespace) -> None:
    """Print it as text for a bug report: first our own lines, then those of torch's ``collect_env``."""
    decord = [] if why_missing("decord") else [file.name for file in metadata.files("decord") or ()]
    shm, gib = shutil.disk_usage("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"), 2**30
    memory, quota = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    found = {
        **runtime.versions(),
        "gcvideo in": str(Path(__file__).parents[1]),
        "decoder pyav": f"FFmpeg {av.ffmpeg_version_info}",
        "decoder decord": why_missing("decord") or " ".join(name for name in decord if name.startswith("libavcodec")),
        "device auto": runtime.gpu_problem() or runtime.pick_device().type,
        "cores of the machine": os.cpu_count() or 0,
        "cores for this process": distributed.cores(),
        "threads of torch": torch.get_num_threads(),
        "/dev/shm": f"{shm.total / gib:.1f} GiB, {shm.free / gib:.1f} GiB free",
        "open files, now and at most": str(resource.getrlimit(resource.RLIMIT_NOFILE)),
        "memory": ", ".join(memory.read_text().splitlines()[:3]) if memory.exists() else "unknown",
        "memory of the container": quota.read_text().strip() if quota.exists() else "not limited",
    }
    report = collect_env.get_pretty_env_info().splitlines()
    theirs = [line for line in report if not line.startswith("Vulnerability")]
    print(*(f"{name}: {value}" for name, value in found.items()), "", *theirs, sep="\n")
    write_json(args.json, {**found, "torch": theirs})
