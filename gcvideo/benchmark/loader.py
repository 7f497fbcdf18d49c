"""What reading videos costs: ours against other toolkits' ways, on the same clips, in one process, on one core.

Every method reads the same clip (the same frames and crop) before the next clip is drawn, in shuffled order, several
times; its cost for the clip is the median. Costs are CPU time over all threads of the process, so that other work on
the machine disturbs them little, and add up over the clips. Figures are their cost over ours.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from gcvideo import console
from gcvideo.benchmark.peers import loaders as peers
from gcvideo.benchmark.peers.loaders import Clip
from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.crops import crop_and_resize, random_short_side_box
from gcvideo.data.dataset import VideoViews, ViewDataset, make_views
from gcvideo.data.records import RecordTable
from gcvideo.errors import DataError, GcvideoError, VideoError
from gcvideo.files import write_json
from gcvideo.video.reader import open_video

FRAMES, STRIDE, CROP = 8, 8, 224
TEST = TestConfig(clips=10, crops=3, short_side=256, crop=256)
SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi"}
# The clips that `--make-from` writes: what copies of Kinetics look like.
MADE_SECONDS, MADE_HEIGHT, MADE_WIDTH = 10, 256, 340
_SOUND_RATE = 44_100

Methods = dict[str, Callable[[], Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``gcvideo benchmark loader``."""
    parser.add_argument("directory", metavar="DIR", help="folder of videos, searched with its subfolders")
    parser.add_argument("--prepared", metavar="DIR2", help="the same videos, transcoded; same names but for the suffix")
    parser.add_argument(
        "--make-from",
        metavar="FOLDER",
        help=f"first fill DIR with {MADE_SECONDS} s of each video of FOLDER at {MADE_WIDTH}x{MADE_HEIGHT}, x264",
    )
    parser.add_argument("--videos", type=int, default=12, metavar="N", help="measure at most so many (default 12)")
    parser.add_argument("--clips", type=int, default=3, metavar="N", help="training clips a video (default 3)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measurements of each clip (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write figures, milliseconds and settings")


def run(args: argparse.Namespace) -> int | None:
    """Measure, print a table, and write the figures."""
    if args.make_from:
        make_clips(args.make_from, args.directory)
    pairs = _pairs(Path(args.directory), args.prepared and Path(args.prepared), args.videos)
    rng = np.random.default_rng(args.seed)
    with _one_core():
        train = _measure_train(pairs, clips=args.clips, repeats=args.repeats, rng=rng)
        test = _measure_test(pairs, repeats=args.repeats, rng=rng)
    figures = _figures(train, test)
    if args.prepared:
        old, new = (sum(os.path.getsize(pair[side]) for pair in pairs) for side in (0, 1))
        figures["prepared.bytes"] = new / old
    milliseconds = {"train_clip": _milliseconds(train), "test_video": _milliseconds(test)}
    for kind, costs in milliseconds.items():
        rows = [[name, round(value, 1), round(value / costs["ours"], 2)] for name, value in costs.items()]
        console.table(rows, columns=["method", "CPU ms", "over ours"], title=f"{kind}, mean of {len(pairs)} videos")
        console.say()
    console.table([[name, round(value, 2)] for name, value in figures.items()], columns=["figure", "theirs / ours"])
    if args.json:
        settings = {key: getattr(args, key) for key in ("videos", "clips", "repeats", "seed")}
        measured = [str(pair[0]) for pair in pairs]
        write_json(
            args.json,
            {"figures": figures, "milliseconds": milliseconds, "settings": settings, "measured": measured},
        )
    return None


def _pairs(folder: Path, prepared: Path | None, limit: int) -> list[tuple[str, str]]:
    """Videos and their transcoded copies (the video itself where there are none), spread over the folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --make-from FOLDER makes clips to measure with")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder}: holds no videos")
    files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(limit, len(files))).astype(int))]
    if prepared is None:
        return [(str(path), str(path)) for path in files]
    pairs = []
    for path in files:
        stem = prepared / path.relative_to(folder).with_suffix("")
        copies = [p for p in stem.parent.glob("*") if p.stem == stem.name and p.suffix.lower() in SUFFIXES]
        if not copies:
            raise DataError(f"{prepared}: no copy of {path.relative_to(folder)}")
        pairs.append((str(path), str(copies[0])))
    return pairs


def _measure_train(
    pairs: Sequence[tuple[str, str]], *, clips: int, repeats: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """CPU seconds of each method for each training clip: 8 frames, stride 8, a 224 x 224 crop."""
    costs: dict[str, list[float]] = {}
    with console.Progress("training clips", total=len(pairs) * clips, unit="clips") as progress:
        for original, copy in pairs:
            for _ in range(clips):
                clip, copied = _draw_clip(original, copy, rng)
                methods: Methods = {
                    "ours": partial(our_clip, clip),
                    "ours, decord": partial(our_clip, clip, backend="decord"),
                    "ours, pyav": partial(our_clip, clip, backend="pyav"),
                    "mmaction2": partial(peers.mmaction2_clip, clip),
                    "pytorchvideo": partial(peers.pytorchvideo_clip, clip),
                    "pytorchvideo_main": partial(peers.pytorchvideo_main_clip, clip),
                    "libav": partial(peers.libav_clip, clip),
                    "decord": partial(peers.decord_clip, clip),
                }
                if copy != original:
                    methods["ours, prepared"] = partial(our_clip, copied)
                    methods["ours, prepared, pyav"] = partial(our_clip, copied, backend="pyav")
                _measure(methods, costs, repeats=repeats, rng=rng)
                progress.advance(1)
    return costs


def _draw_clip(original: str, copy: str, rng: np.random.Generator) -> tuple[Clip, Clip]:
    """A random clip of a video, and the same clip of its copy."""
    start, scale, across, down = rng.random(4)
    drawn = []
    for path in (original, copy):
        with open_video(path) as video:
            slack = len(video) - FRAMES * STRIDE
            if slack < 0:
                raise VideoError(path, f"is shorter than {FRAMES * STRIDE} frames; measure with longer videos")
            indices = int(start * (slack + 1)) + STRIDE * np.arange(FRAMES)
            fixed = np.random.default_rng([int(1e6 * scale), int(1e6 * across), int(1e6 * down)])
            box = random_short_side_box(video.height, video.width, short_side=(256, 320), crop=CROP, rng=fixed)
            drawn.append(Clip(path, indices, video.fps, video.height, box, CROP))
    return drawn[0], drawn[1]


def our_clip(clip: Clip, *, backend: str = "auto") -> torch.Tensor:
    """What ``ClipDataset`` does for a clip; uint8 (3, T, H, W)."""
    with open_video(clip.path, backend=backend) as video:
        frames = video.frames(clip.indices)
    return crop_and_resize(frames, clip.box, (clip.size, clip.size), flip=True)


def _measure_test(
    pairs: Sequence[tuple[str, str]], *, repeats: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """CPU seconds of each method for all 30 views of each video.

    "ours" makes the views on the CPU as the others do; "ours, frames only" stops where our loader hands the unique
    frames over, whose views are then slices made on the device.
    """
    costs: dict[str, list[float]] = {}
    with console.Progress("test videos", total=len(pairs), unit="videos") as progress:
        for original, copy in pairs:
            with open_video(original) as video:
                count, fps = len(video), video.fps
            views = {"clips": TEST.clips, "crops": TEST.crops, "size": TEST.crop}
            methods: Methods = {
                "ours": partial(our_views, original),
                "ours, frames only": partial(our_video, original),
                "ours, decord": partial(our_views, original, backend="decord"),
                "ours, pyav": partial(our_views, original, backend="pyav"),
                "mmaction2": partial(peers.mmaction2_views, original, count, **views),
                "per_view": partial(peers.per_view_video, original, count, fps, **views),
            }
            if copy != original:
                methods["ours, prepared"] = partial(our_views, copy)
                methods["ours, prepared, pyav"] = partial(our_views, copy, backend="pyav")
            _measure(methods, costs, repeats=repeats, rng=rng)
            progress.advance(1)
    return costs


def our_video(path: str, *, backend: str = "auto") -> VideoViews:
    """What ``ViewDataset`` does for a video: all frames of its views, decoded once and resized."""
    records = RecordTable(ids=[path], paths=[os.path.abspath(path)], labels=[0])
    data = DataConfig(frames=FRAMES, stride=STRIDE, backend=backend)  # type: ignore[arg-type]
    views = ViewDataset(records, data=data, test=TEST)[0]
    if views.failure:
        raise VideoError(views.failure.path, views.failure.reason)
    return views


def our_views(path: str, *, backend: str = "auto") -> torch.Tensor:
    """The views themselves, made on the CPU; uint8 (30, 3, T, 256, 256)."""
    return make_views(our_video(path, backend=backend))


def _measure(methods: Methods, costs: dict[str, list[float]], *, repeats: int, rng: np.random.Generator) -> None:
    """Call all methods in turn, in a new order each time; append the median CPU time of each."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_number in range(repeats + 1):  # the first round warms caches and imports
        for name in rng.permutation(list(methods)).tolist():
            start = time.process_time()
            methods[name]()
            if round_number:
                seconds[name].append(time.process_time() - start)
    for name, values in seconds.items():
        costs.setdefault(name, []).append(median(values))


def _figures(train: dict[str, list[float]], test: dict[str, list[float]]) -> dict[str, float]:
    """Their time over ours, by name; over ours with PyAV under names that end in ``.with_pyav``."""
    figures = {}
    for kind, costs, names in (
        ("train_clip", train, ("mmaction2", "pytorchvideo", "pytorchvideo_main", "libav", "decord")),
        ("test_video", test, ("mmaction2", "per_view")),
    ):
        for ours, prefix, suffix in (
            ("ours", "", ""),
            ("ours, pyav", "", ".with_pyav"),
            ("ours, prepared", "prepared.", ""),
            ("ours, prepared, pyav", "prepared.", ".with_pyav"),
        ):
            if ours in costs:
                for name in names:
                    figures[f"{prefix}{kind}.{name}{suffix}"] = sum(costs[name]) / sum(costs[ours])
    for name in ("mmaction2", "per_view"):
        figures[f"test_video.{name}.views_on_device"] = sum(test[name]) / sum(test["ours, frames only"])
    return figures


def _milliseconds(costs: dict[str, list[float]]) -> dict[str, float]:
    return {name: 1000 * float(np.mean(values)) for name, values in costs.items()}


@contextmanager
def _one_core() -> Iterator[None]:
    """Keep this process, and the threads that decoders start, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def make_clips(source: str, target: str) -> None:
    """Write ten seconds of every readable video of a folder as the usual copies of Kinetics are: 340 x 256, H.264 with
    x264's defaults (crf 23, preset medium, a key frame every 250 pictures at most), AAC sound. Shorter videos are
    looped; the sound is noise.
    """
    files = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{source}: holds no videos")
    with console.Progress("making clips", total=len(files), unit="videos") as progress:
        for file in files:
            made = Path(target) / f"{file.parent.name}_{file.stem}.mp4"
            try:
                if not made.exists():
                    _make_clip(str(file), made)
            except GcvideoError as error:
                console.warn(str(error))
            progress.advance(1)


def _make_clip(source: str, target: Path) -> None:
    import av

    with open_video(source) as video:
        if len(video) < FRAMES * STRIDE:
            raise VideoError(source, f"is shorter than {FRAMES * STRIDE} frames: left out")
        rate = Fraction(video.fps).limit_denominator(1001)
        indices = np.arange(round(MADE_SECONDS * rate)) % len(video)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part")
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options={"preset": "medium", "crf": "23", "g": "250"})
            stream.height, stream.width, stream.pix_fmt = MADE_HEIGHT, MADE_WIDTH, "yuv420p"
            sound = container.add_stream("aac", rate=_SOUND_RATE, layout="stereo")
            second = round(rate)  # the tracks are written side by side, a second of each
            for number, part in enumerate(np.split(indices, range(second, len(indices), second))):
                container.mux(sound.encode(_noise(number)))
                for image in video.frames(part):
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                    frame = frame.reformat(MADE_WIDTH, MADE_HEIGHT, "yuv420p", interpolation="BICUBIC")
                    frame.pts = None
                    container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            container.mux(sound.encode(None))
        os.replace(partial, target)


def _noise(second: int) -> Any:
    """A second of faint stereo noise."""
    import av

    samples = np.random.default_rng(second).normal(scale=0.05, size=(2, _SOUND_RATE)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
    frame.sample_rate, frame.pts = _SOUND_RATE, second * _SOUND_RATE
    return frame
