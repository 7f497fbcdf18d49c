"""A long run of ``gcvideo predict rtsp://... --json-lines``: memory must stay flat while the server is restarted.

``nice -n 10 python -m tests.soak_live --minutes 30 --restarts 3`` takes that long; no test runs it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.servers import RtspServer
from tests.tiny import tiny_checkpoint
from tests.videos import moving_frames, write_video


def resident(pid: int) -> float:
    """Memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--restarts", type=int, default=3)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell would ignore Ctrl-C
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    frames = np.concatenate([moving_frames(20, seed=scene) for scene in range(6)])
    video = write_video(folder / "a.mp4", frames, fps=10, gop=20, options={"bf": "0"})
    command = [sys.executable, "-m", "gcvideo", "predict", "--checkpoint", str(tiny_checkpoint(folder)), "--step", "1"]
    with RtspServer(video) as server, (folder / "errors").open("w") as errors:
        files = [
            "--json-lines",
            str(folder / "lines"),
            "--html",
            str(folder / "page.html"),
            "--json",
            str(folder / "j"),
        ]
        process = subprocess.Popen([*command, *files, server.url], stdout=subprocess.DEVNULL, stderr=errors)
        while not (folder / "page.html").exists():
            assert process.poll() is None, (folder / "errors").read_text()
            time.sleep(0.5)
        time.sleep(20)  # everything has been imported and used once
        began, first = time.monotonic(), resident(process.pid)
        print(f"start: {first:.1f} MB", flush=True)
        seconds = 60 * args.minutes
        restarts = [seconds * (k + 1) / (args.restarts + 1) for k in range(args.restarts)]
        marks = [*np.arange(300, seconds, 300), seconds]
        sizes = []
        while marks:
            time.sleep(1)
            now = time.monotonic() - began
            sizes.append(resident(process.pid))
            if restarts and now >= restarts[0]:
                restarts.pop(0)
                server.stop()
                time.sleep(12)
                server.start()
            if now >= marks[0]:
                print(f"after {marks.pop(0) / 60:.1f} min: {sizes[-1]:.1f} MB", flush=True)
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    text = (folder / "errors").read_text()
    print(f"exit code {code}; windows: {len((folder / 'lines').read_text().splitlines())}")
    print(f"lost: {text.count('connection lost')}, back: {text.count('receiving again')}; folder: {folder}")
    print(f"largest {max(sizes):.1f} MB, {max(sizes) - first:+.1f} MB against the start")
    return 0 if code == 0 and max(sizes) - first < 20 and text.count("receiving again") == args.restarts else 1


if __name__ == "__main__":
    sys.exit(main())
