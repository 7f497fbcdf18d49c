"""A folder with everything that the commands of the docs name, tiny; and the runner of these commands."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import threading
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gcvideo.models import MODELS, model_config
from tests.processes import savefig_without_svg, warm_context
from tests.servers import RtspServer
from tests.videos import moving_frames, write_video

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["left", "right", "up", "down"]
# What makes each command quick; everything else is as the docs say.
TRAIN = shlex.split(
    "model.width=4 data.frames=4 data.stride=2 data.crop=32 data.short_side=[32,40] data.workers=0 "
    "device=cpu train.epochs=1 train.batch_size=4 train.precise_bn=0 train.val_every=1 train.precision=fp32 "
    "optim.warmup_epochs=0 optim.warmup_start_lr=0 optim.lr=0.001 test.clips=1 test.crops=1 "
    "test.crop=32 test.short_side=36"
)
TINY: dict[str, list[str]] = {
    "train": TRAIN,
    "demo": ["--data", "data/demo"],
    "fit": shlex.split(
        "--minutes 0.05 model.width=4 model.weights=null data.frames=4 data.crop=32 data.workers=0 test.clips=1 "
        "train.epochs=1"
    ),
    "export": ["--size", "64"],  # smaller clips, whose height may not vary, are traced twice
    "benchmark compare": shlex.split("model.width=4 --frames 4 --size 32 --batches 1 --rounds 1"),
    "prepare synthetic": shlex.split("--train 8 --val 8"),
    "prepare motion": shlex.split("--per-class 1"),
    "benchmark blocks": shlex.split("--batch 1 --rounds 1 --nl-rounds 1 --model-rounds 0"),
    "benchmark complexity": shlex.split("--frames 4 --size 32"),
    "benchmark train": shlex.split("--frames 4 --crop 32 --rounds 1 --batch 1 --up-to 1"),
    "benchmark infer": shlex.split("--crop 32 --rounds 1 --clips 1 --crops 1"),
    "benchmark loader": shlex.split("--videos 1 --clips 1 --repeats 1"),
}
# ResNet-18 in the place of ResNet-50 trains, explains itself and exports faster.
SHALLOW = {
    "slow_r50_gc_c345_8x8": " model.depth=18",
    "slow_r50_nl5_8x8": " model.depth=18 'model.context.stages={res3: [1], res4: [1]}'",
}
CAMERA = "192.168.1.20/stream1"
SHIM = f"""#!{sys.executable} -S
import json, os, socket, sys
if "-" in sys.argv[1:]:  # standard input does not reach the process that runs the command, but this file does
    with open("stdin", "wb") as file:
        file.write(sys.stdin.buffer.read())
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["DOCS_SERVER"])
    request = {{"argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]], "cwd": os.getcwd(), "env": dict(os.environ)}}
    server.sendall(json.dumps(request).encode() + b"\\n")
    reply = json.loads(server.makefile().readline())
print(reply["output"], end="")
sys.exit(reply["code"])
"""


def make_world(folder: Path) -> Path:
    """Videos, lists, weights and finished runs under the names that the docs use."""
    (folder / "videos").mkdir(parents=True)
    videos = [write_video(folder / "videos" / f"{i}.mp4", moving_frames(72, seed=i)) for i in range(8)]
    write_video(folder / "match.mp4", moving_frames(75, seed=1))
    shutil.copy(videos[0], folder / "holiday.mp4")
    for place in ("clips", "new_videos", "videos_fast"):
        shutil.copytree(folder / "videos", folder / place)
    lists(folder / "my", videos, "train.txt", "val.txt", "test.txt")
    for i, video in enumerate(videos):
        (folder / "my/videos" / CLASSES[i % 4]).mkdir(parents=True, exist_ok=True)
        shutil.copy(video, folder / "my/videos" / CLASSES[i % 4])
    lists(folder / "data/ucf101_10", videos, "train.txt", "test.txt")
    (folder / "data/ucf101_10/classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split in ("train", "val"):
        kinetics(folder / "data/kinetics400", videos, split)
    kinetics(folder, videos, "train", place="videos")
    kinetics(folder, videos, "val", place="videos")
    for name in ("configs", "tools", "gcvideo"):
        (folder / name).symlink_to(ROOT / name)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        gcvideo("prepare synthetic data/synthetic --train 8 --val 8")
        for name in ("slow_r50_8x8", "slow_r50_gc_c345_8x8", "slow_r50_nl5_8x8"):
            gcvideo(
                f"train configs/kinetics400/{name}.yaml data.train.annotation=my/train.txt data.train.root=null "
                "data.val.annotation=my/val.txt data.val.root=null model.num_classes=4 "
                + shlex.join(TRAIN)
                + SHALLOW.get(name, "")
            )
            gcvideo(f"test runs/{name}")
        gcvideo("embed my/val.txt --checkpoint runs/slow_r50_gc_c345_8x8 --out vectors.parquet --workers 0")
        gcvideo("convert runs/slow_r50_8x8/checkpoints/last.pt SLOW_8x8_R50.pyth --from gcvideo --to pyslowfast")
    runs = folder / "runs"
    shutil.copy(runs / "slow_r50_gc_c345_8x8/checkpoints/last.pt", folder / "slow_r50_gc.pt")
    copies = {"slow_r50_gc_c345_8x8": ["synthetic_gc", "small_scratch"], "slow_r50_nl5_8x8": []}
    for data, kind, seed in itertools.product(("ucf101_10", "synthetic_8"), ("plain", "nl", "se", "gc"), range(3)):
        copies["slow_r50_nl5_8x8" if kind == "nl" else "slow_r50_gc_c345_8x8"].append(f"{data}_{kind}_s{seed}")
    for source, names in copies.items():
        for name in names:
            shutil.copytree(runs / source, runs / name)
    return folder


def gcvideo(line: str) -> None:
    """Run a command that must succeed."""
    from gcvideo.cli import main

    assert main(shlex.split(line)) in (0, None), line


def lists(folder: Path, videos: list[Path], *names: str) -> None:
    """Lists of ``path label`` with the videos beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for video in videos:
        shutil.copy(video, folder)
    for name in names:
        (folder / name).write_text("".join(f"{video.name} {i % 4}\n" for i, video in enumerate(videos)))


def kinetics(folder: Path, videos: list[Path], split: str, *, place: str = "") -> None:
    """An official CSV and the videos that it names."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / (place or split)).mkdir(exist_ok=True)
    rows = ["label,youtube_id,time_start,time_end,split"]
    for i, video in enumerate(videos):
        name = f"{i:011d}"
        shutil.copy(video, folder / (place or split) / f"{name}_000001_000011.mp4")
        rows.append(f"{CLASSES[i % 4]},{name},1,11,{split}")
    (folder / "annotations" / f"{split}.csv").write_text("\n".join(rows) + "\n")


class Runner(socketserver.ThreadingUnixStreamServer):
    """Runs ``gcvideo`` and ``torchrun`` commands of shell blocks in forks of one warm process.

    ``torchrun`` becomes one process: several are tested in ``tests/integration/test_ddp.py``.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder / "server"), _Handler)
        self.context = warm_context()
        self.camera: RtspServer | None = None
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("gcvideo", "torchrun"):
            (self.bin / name).write_text(SHIM)
            (self.bin / name).chmod(0o755)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def here(self, text: str, folder: Path) -> str:
        """A block with a server of this machine in the place of its camera, which it watches for a second."""
        if CAMERA not in text:
            return text
        if self.camera is None:
            video = write_video(folder / "camera.mp4", moving_frames(50), options={"bf": "0"})
            self.camera = RtspServer(video, password="user:password")
        text = text.replace("--seconds 60", "--seconds 1").replace("window.end > 60", "window.end > 1")
        return text.replace(CAMERA, self.camera.url.removeprefix("rtsp://"))

    def shell(self, script: str, world: Path) -> subprocess.CompletedProcess[str]:
        """Run a shell block in a world, with one seed instead of three, and without the networks that have blocks of
        other kinds than NL and GC; ``/data`` lies in the world."""
        script = self.here(script, world)
        script = re.sub(r"plain nl (se )?gc", "nl gc", re.sub(r"plain,nl,(se,)?gc", "nl,gc", script))
        script = re.sub(r"\$\(runs plain\) |runs/\w+_(plain|se)_s0 ", "", script)
        script = re.sub(r"seed in 0 1[ 0-9]*", "seed in 0", script.replace("/data/", f"{world}/data/"))
        script = re.sub(r",runs/[^,\"]*_s[12]", "", script)
        environment = {**os.environ, "DOCS_SERVER": str(self.server_address)}
        environment["PATH"] = f"{self.bin}:{environment['PATH']}"
        command = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(
            command, cwd=world, env=environment, text=True, capture_output=True, input="", timeout=600
        )

    def call(self, function: str, argument: Any, *, cwd: str, env: dict[str, str]) -> dict[str, Any]:
        """Run ``function(argument)`` of this module in a fork; its exit code and what it printed."""
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_run, args=(function, argument, cwd, env, sender))
        process.start()
        sender.close()
        try:
            return dict(receiver.recv())
        except EOFError:
            process.join()
            return {"code": 70, "output": f"the process died with exit code {process.exitcode}\n"}


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        reply = self.server.call("command", request["argv"], cwd=request["cwd"], env=request["env"])  # type: ignore[attr-defined]
        self.wfile.write(json.dumps(reply).encode() + b"\n")


def tiny(argv: list[str]) -> list[str]:
    """A command of the docs with the changes that make it quick."""
    if argv[0] == "torchrun":
        tool = next(i for i, word in enumerate(argv) if word.startswith("tools/"))
        assert (ROOT / argv[tool]).is_file(), argv[tool]
        argv = ["gcvideo", Path(argv[tool]).stem, *argv[tool + 1 :]]
    words = argv[1:]
    for command in (" ".join(words[:2]), words[0]):
        if command in TINY:
            break
    else:
        return words
    length, extra = len(command.split()), list(TINY[command])
    if command == "export" and not words[2].endswith((".onnx", ".pt2")):
        return words  # a folder to publish
    if command == "train":
        if "--help-config" in words:
            return words
        synthetic = any("synthetic" in word or word == "cbam.yaml" for word in words)
        classes = 8 if synthetic else 2 if any("my_format" in word for word in words) else 4
        motion = any(word.startswith("motion/") for word in words)
        extra += ["train.epochs=0.002"] if motion else [f"model.num_classes={classes}"]
        extra += ["model.width=16"] * any("from_motion" in word for word in words)  # that of the weights
        if any("gc" in word for word in words):  # whose blocks ResNet-18 can have too; it trains and exports faster
            extra.append("model.depth=18")
        extra += ["--overwrite"] * (not {"--resume", "--dry-run", "--overfit"} & set(words))
        return [*words, *extra]
    if command == "benchmark compare":
        named = [word for word in words if word in MODELS]
        for word in named[2:-1]:  # three are enough
            model_config(word)
            words.remove(word)
    if "--quick" in words:
        extra += [*TRAIN, "train.epochs=2"]
    if command == "benchmark compare" and "--skip" not in words:
        words = [*words, "--skip", "memory"]  # it starts a process for each number
    return [*words[:length], *extra, *words[length:]] if command == "benchmark compare" else [*words, *extra]


def command(argv: list[str]) -> int:
    from gcvideo import cli

    Figure.savefig = savefig_without_svg  # type: ignore[method-assign]
    if any("motion" in word for word in argv):
        from gcvideo.prepare import motion

        motion.TEXTURES = 5
        if argv[1:3] == ["prepare", "motion"]:
            motion.CLASSES = motion.CLASSES[::16]
    if argv[1:3] == ["benchmark", "train"]:  # whose networks have no options
        from gcvideo.benchmark import train

        train.WARM_UP, train.model_config = 0, partial(train.model_config, width=8)
    if argv[1:3] == ["benchmark", "compare"]:
        from gcvideo.benchmark import compare

        compare.PRESETS["paper", True] = compare.PRESETS["paper", True][1::3]  # nl and gc
        compare.CHANNELS = 8
        compare.GROWING = {"frames": [(2, 4, 4), (4, 4, 4)], "size": [(2, 4, 4), (2, 8, 8)]}
    if argv[1:3] == ["benchmark", "blocks"]:
        from gcvideo.benchmark import blocks

        blocks.STAGES = {"res4": (64, 2, 4, 4)}
    if {"--find-lr", "--overfit"} & set(argv):
        from gcvideo.train import dry_run

        dry_run.find_lr, dry_run.OVERFIT_STEPS = partial(dry_run.find_lr, steps=12), 10
    main = cli.main
    cli.main = lambda words: main(tiny(["gcvideo", *words]))  # of a demo, which runs what its reader could type
    return main(tiny(argv)) or 0


def python(code: str) -> int:
    import gcvideo.config
    from gcvideo.config import load_config

    gcvideo.config.load_config = lambda path, overrides=(): load_config(
        path, tiny(["gcvideo", "train", path, *overrides])[2:-1]
    )
    exec(compile(code, "<docs>", "exec"), {"__name__": "__main__"})
    return 0


def _run(function: str, argument: Any, cwd: str, env: dict[str, str], sender: Any) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    if os.path.exists("stdin"):
        sys.stdin = io.TextIOWrapper(io.BytesIO(Path("stdin").read_bytes()))
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = globals()[function](argument)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc(file=output)
            code = 1
    if function == "command":
        output.write(f"$ {shlex.join(argument)}\n")
    sender.send({"code": code, "output": output.getvalue()})
