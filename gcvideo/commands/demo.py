"""``gcvideo demo``: the main job end to end, on videos that it makes itself.

It does nothing of its own: it runs the commands that a user would type, one after the other, and shows each of them.
"""

import argparse
import shlex
import time

from gcvideo.config import load_config

CONFIG = "demo/synthetic_gc.yaml"


def run(args: argparse.Namespace) -> int:
    """Make the set, train, test and predict; returns the first exit code that is not 0."""
    from gcvideo.cli import main

    started = time.monotonic()
    folders = [(split, args.data / split) for split in ("train", "val")]
    overrides = [f"data.{split}.{key}" for split, at in folders for key in (f"annotation={at}.csv", f"root={at}")]
    overrides += args.overrides
    run_dir = load_config(CONFIG, overrides).run_dir
    steps = [
        ["prepare", "synthetic", str(args.data)],
        ["train", CONFIG, *overrides, "--overwrite"],
        ["test", str(run_dir), *(["--json", args.json] if args.json else [])],
    ]
    for number, step in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] gcvideo {shlex.join(step)}", flush=True)
        code = main(step)
        if code:
            return code
    print(f"\nDone in {time.monotonic() - started:.0f} s. The network and its results lie in {run_dir}.")
    print(f"Open {run_dir / 'report.html'} in a browser: the training and the test.")
    return 0
