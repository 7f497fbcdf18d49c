"""Golden runs: what short trainings and tests gave once, so that a change of the code cannot change it unseen.

``python -m tests.golden check`` trains again and compares with ``tests/data/golden.json``;
``python -m tests.golden record`` writes that file anew. Record only where a change of the numbers is meant.

The rule of comparison:

* On the machine that recorded, every loss, the final weights and the scores of the test are the same to the last bit.
  A machine is its processor, torch's version, the instruction sets that torch and oneDNN use, and one thread.
* On another machine the losses and scores may differ by ``MARGINS``, and the checksums of weights and scores are not
  compared. Measured on an AVX-512 processor, with torch and oneDNN held to AVX2 and then to SSE: losses moved by up to
  1.3e-6, relative, and scores by up to 1e-5, so the margins are about a hundred times that. Other makes of processor
  were not measured. Any two block kinds differ by 4.8e-4 or more in some loss, so the margins still tell them apart.
* Anywhere, a run that stopped in the middle of an epoch and went on ends as the unbroken one, to the last bit.

The videos are lossless and drawn as YUV, so no encoder and no conversion before it matters. The checksum of their
decoded planes is compared anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from gcvideo.cli import main as gcvideo_main
from gcvideo.config import RunConfig
from tests.training import EVERYTHING, last_state, metrics, same_tensors, train_config, train_in_processes
from tests.videos import moving_frames

GOLDEN = Path(__file__).parent / "data" / "golden.json"
CLASSES = 4
VIDEOS = 8
STOP_AT = 3  # of six steps; an epoch has two
# Elsewhere: of each loss, relative; of each score, absolute.
MARGINS = {"loss": 1e-4, "score": 1e-3}

# Name -> numbers of processes.
RUNS: dict[str, tuple[int, ...]] = {
    "plain": (1, 2),
    "gc": (1, 2),
    "snl": (1, 2),
    "se": (1, 2),
    "nl": (1, 2),
    "gc_everything": (1,),
}


def exact_videos(folder: Path, count: int = VIDEOS, *, seed: int = 0) -> Path:
    """``folder/val.txt`` and ``count`` videos of 20 frames of 64 x 48 that decode to the same planes anywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        name = f"video_{i}.mp4"
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(
                "libx264", rate=25, options={"preset": "ultrafast", "qp": "0", "threads": "1"}
            )
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for t, planes in enumerate(_yuv(moving_frames(20, seed=seed + i))):
                frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
                frame.pts = t
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        lines.append(f"{name} {i % CLASSES}\n")
    (folder / "val.txt").write_text("".join(lines))
    return folder


def _yuv(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) RGB to (T, 1.5 H, W) planes of yuv420p, in whole numbers (ITU-R BT.601)."""
    red, green, blue = np.moveaxis(frames.astype(np.int32), -1, 0)
    luma = (66 * red + 129 * green + 25 * blue + 128 >> 8) + 16
    blueness = (-38 * red - 74 * green + 112 * blue + 128 >> 8) + 128
    redness = (112 * red - 94 * green - 18 * blue + 128 >> 8) + 128
    count, height, width = luma.shape
    chroma = [plane[:, ::2, ::2].reshape(count, height // 4, width) for plane in (blueness, redness)]
    return np.concatenate([luma, *chroma], axis=1).astype(np.uint8)


def videos_checksum(folder: Path) -> str:
    """SHA-256 of all planes of all videos, as decoded."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("video_*.mp4")):
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                digest.update(frame.to_ndarray().tobytes())
    return digest.hexdigest()


def machine() -> dict[str, Any]:
    """Everything that arithmetic in float32 may depend on, with one thread."""
    try:
        lines = Path("/proc/cpuinfo").read_text()
    except OSError:
        lines = ""
    known = dict(re.findall(r"^(model name|cpu family|model|stepping)\s*: (.*)$", lines, re.MULTILINE))
    return {
        # A virtual machine may call every processor of a maker alike, so the name alone does not do.
        "cpu": " ".join(known.get(key, "?") for key in ("model name", "cpu family", "model", "stepping")),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "threads": 1,
    }


def golden_config(folder: Path, kind: str, name: str) -> RunConfig:
    """Three epochs of two steps; every step is told and kept."""
    keep = {"checkpoint_every": 1, "keep_checkpoints": 10}
    if kind != "gc_everything":
        stages = {"res3": "all", "res4": "all"}
        context = {"kind": kind, "stages": stages} if kind != "plain" else {"kind": "none", "stages": {}}
        # A rate at which the blocks, which start as nothing, come to matter, and at which rounding does not.
        return train_config(folder, name, model={"context": context}, optim={"lr": 0.1}, train=keep)
    # Multigrid changes the size of clips, and bf16 the arithmetic, with the machine.
    train = {**EVERYTHING["train"], **keep, "multigrid": "none", "precision": "fp32", "epochs": 3}
    return train_config(folder, name, **{**EVERYTHING, "train": train})


def measure(folder: Path, kind: str, processes: int) -> dict[str, Any]:
    """Train, train again from the middle, and test; the two trainings must end alike."""
    name = f"{kind}-{processes}"
    config = golden_config(folder, kind, name)
    assert train_in_processes(config, processes=processes) == [0] * processes
    resumed = dataclasses.replace(config, name=f"{name}-resumed")
    stop_in_the_middle(config.run_dir, resumed.run_dir)
    assert last_state(resumed)["step"] == STOP_AT
    assert train_in_processes(resumed, processes=processes, resume=True) == [0] * processes
    state, other = last_state(config), last_state(resumed)
    losses, others = ([line["loss"] for line in metrics(run)] for run in (config, resumed))
    assert losses == others, f"{name}: losses differ after going on: {losses} and {others}"
    for part in sorted({"model", "raw_model", "optimizer", "step", "epoch"} & state.keys()):
        assert same_tensors(state[part], other[part]), f"{name}: {part} differs after going on"
    scores = tested_scores(config.run_dir / "checkpoints" / "last.pt", folder / f"{name}-test")
    return {
        "losses": losses,
        "weights": tensors_checksum(state["model"]),
        "scores": hashlib.sha256(scores.tobytes()).hexdigest(),
        "rounded_scores": [[round(float(score), 5) for score in row] for row in scores],
    }


def stop_in_the_middle(run: Path, copy: Path) -> None:
    """Copy a finished run as it was at step ``STOP_AT``; what it told later is there still, as after a kill."""
    shutil.copytree(run, copy)
    checkpoints = copy / "checkpoints"
    shutil.copyfile(checkpoints / f"step_{STOP_AT:08d}.pt", checkpoints / "last.pt")
    (checkpoints / "best.pt").unlink(missing_ok=True)
    for path in checkpoints.glob("step_*.pt"):
        if int(path.stem[5:]) > STOP_AT:
            path.unlink()


def tensors_checksum(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def tested_scores(checkpoint: Path, output: Path) -> np.ndarray:
    """(V, K) float32 of ``gcvideo test``, in a process of its own with one thread."""
    process = multiprocessing.get_context("forkserver").Process(target=_test, args=(str(checkpoint), str(output)))
    process.start()
    process.join()
    assert process.exitcode == 0
    with np.load(output / "predictions.npz") as stored:
        return stored["scores"]


def _test(checkpoint: str, output: str) -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        code = gcvideo_main(["test", checkpoint, "--output", output])
    sys.exit(code)


def differences(name: str, golden: dict[str, Any], found: dict[str, Any], *, exact: bool) -> list[str]:
    """What differs, one line each; by more than ``MARGINS`` where ``exact`` is not set."""
    lines = []
    if len(golden["losses"]) != len(found["losses"]):
        return [f"{name}: {len(found['losses'])} steps, {len(golden['losses'])} in the golden run"]
    for step, (old, new) in enumerate(zip(golden["losses"], found["losses"], strict=True), start=1):
        if old != new if exact else not abs(new - old) <= MARGINS["loss"] * abs(old):
            lines.append(f"{name}: loss of step {step} is {new!r}, was {old!r} (relative {abs(new / old - 1):.1e})")
    if exact:
        lines += [f"{name}: the {part} differ" for part in ("weights", "scores") if golden[part] != found[part]]
    off = float(np.abs(np.array(golden["rounded_scores"]) - np.array(found["rounded_scores"])).max())
    if not off <= (0 if exact else MARGINS["score"]):
        lines.append(f"{name}: scores differ by up to {off:.1e}")
    return lines


def load_golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def main(arguments: list[str]) -> int:
    if arguments not in (["record"], ["check"]):
        print("usage: python -m tests.golden record|check", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = exact_videos(Path(place))
        runs = {f"{kind}-{count}": measure(folder, kind, count) for kind, counts in RUNS.items() for count in counts}
        found = {"machine": machine(), "videos": videos_checksum(folder), "runs": runs}
    if arguments == ["record"]:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    golden = load_golden()
    exact = golden["machine"] == found["machine"]
    lines = ["the decoded videos differ"] if golden["videos"] != found["videos"] else []
    for name, run in golden["runs"].items():
        lines += differences(name, run, runs[name], exact=exact)
    for line in lines:
        print(line)
    print(f"compared {'to the last bit' if exact else f'within {MARGINS}'}: {'differs' if lines else 'the same'}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
