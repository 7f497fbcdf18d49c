"""Synthetic sets: an action set whose classes differ only by motion, and a controlled task for global context.

In the action set each video, a real H.264 MP4 file, shows a handful of discs on a textured background. All discs do
the same: they go left then right, or right then left; grow or shrink (and burst or vanish, to begin again); circle
clockwise or counterclockwise; or bounce twice or thrice. Sizes, colours, shades, background, speeds and the moments of
turning are random.

No single frame gives the class away, by construction and not only by chance: every motion is a shift along a closed
loop with a uniformly random start. Positions wrap around the frame, and sizes around their range. So one frame of any
class, at any time, has the same distribution.

A clip of 16 frames with a stride of 3 spans 46 of a video's 48 frames, and small networks learn all classes from it;
from 8 frames with a stride of 5 they did not learn which way discs circle. Horizontal flips would swap classes: train
with ``data.flip: 0``.

The task ``context`` is *match the cue*, in 8 frames of 32 x 32 pixels. The first frames show a disc, the cue, black or
white; the last frames two rings of different colours, one with a black centre and one with a white centre. The label is
the colour of the ring whose centre matches the cue. All combinations are equally likely: the cue alone says nothing
about the label, and the rings alone leave two colours at 50 % each. Nor do both help a network that adds up what it
sees at places each of which sees one cue, ``logits = f(cue) + g(rings)``. Cross entropy is convex in f and g, and its
gradient is the mean of (prediction - label) given the cue, or given the rings. Where the prediction is 50 % for each of
the two colours, both are zero: no f and g have a lower loss.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.errors import DataError
from gcvideo.files import Journal, Row, read_yaml, write_atomically
from gcvideo.prepare.jobs import scan
from gcvideo.prepare.transcode import encode_frames

CLASSES: tuple[str, ...] = tuple(read_yaml(__file__, "synthetic.yaml"))
WIDTH, HEIGHT = 72, 60  # pixels
FRAMES, FPS = 48, 20
SECONDS = math.ceil(FRAMES / FPS)
# The bytes must not depend on the number of cores, so one thread; nor on what lay in memory before, as they do with
# macroblock trees where x264 computes in AVX-512.
ENCODER = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
COLUMNS, ROWS = 3, 2  # of discs
SMALLEST, LARGEST = 4.5, 13.5  # radius of a disc, pixels
RECIPE = 1  # raised whenever the same arguments would give other pixels
CUE_COLOURS = {"blue": (60, 80, 230), "green": (50, 190, 60), "red": (220, 50, 50), "yellow": (220, 200, 50)}
CUE_SIDE, CUE_FRAMES = 32, 8  # pixels, frames
CUE_STAYS = 3  # frames
# Distance of the cues -> the first frame of the disc, that of the rings, and whether these lie on the other side.
DISTANCES = {"near": (1, 4, False), "space": (1, 4, True), "time": (0, 5, False), "both": (0, 5, True)}
ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def make_synthetic(
    folder: str | Path,
    *,
    task: str = "action",
    distance: str = "both",
    train: int = 240,
    val: int = 80,
    seed: int = 0,
    workers: int | None = None,
) -> tuple[Path, Path]:
    """Make the set, or finish one that was interrupted. A complete one is left as it is.

    Args:
        folder: created if it does not exist.
        task: "action", or "context": match the cue.
        distance: of the cues of "context": "near", or far in "space", in "time" or in "both".
        train, val: videos of each split, one at least; the classes are balanced as far as the number divides.
        seed: the same seed gives the same videos.
        workers: processes that draw and encode; by default one a core.

    Returns:
        The annotations ``train.csv`` and ``val.csv``, in the official Kinetics columns. The videos of each lie in the
        folder of the same name, as ``ID_SSSSSS_EEEEEE.mp4``.

    Raises:
        DataError: the folder holds something else, such as a set made with other arguments.
    """
    folder = Path(folder).expanduser()
    settings: dict[str, Any] = {"recipe": RECIPE, "train": train, "val": val, "seed": seed}
    classes, draw = CLASSES, draw_clip
    if task == "context":
        settings |= {"task": task, "distance": distance}
        classes, draw = tuple(CUE_COLOURS), partial(draw_cues, distance=distance)
    journal = Journal(folder / "synthetic.jsonl", settings)
    if not journal.fits and folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds something else than the synthetic set of {settings}; choose another folder")
    tables, videos = {}, {}
    for number, (split, count) in enumerate({"train": train, "val": val}.items()):
        rng, rows = np.random.default_rng((seed, number)), ["label,youtube_id,time_start,time_end,split\n"]
        for index, label in enumerate(rng.permutation(np.arange(count) % len(classes)).tolist()):
            name, start = "".join(rng.choice(list(ID_LETTERS), 11)), int(rng.integers(0, 290))  # as if cut out
            rows.append(f"{classes[label]},{name},{start},{start + SECONDS},{split}\n")
            path = folder / split / f"{name}_{start:06d}_{start + SECONDS:06d}.mp4"
            videos[str(path)] = label, (seed, number, index)
        tables[split] = "".join(rows)

    write_drawn(videos, draw, fps=FPS, journal=journal, title="synthetic set", workers=workers)
    for split, table in tables.items():
        write_atomically(folder / f"{split}.csv", table.encode())
    return folder / "train.csv", folder / "val.csv"


def write_drawn(videos: dict[str, tuple[int, Any]], draw: Callable[..., np.ndarray], *, fps: int, **job: Any) -> None:
    """Draw and write videos that are not there yet: the same label and seed give the same bytes.

    Args:
        videos: path -> label and seed.
        draw: label and generator -> frames, uint8 (T, H, W, 3) RGB.
        fps: frames per second.
        job: options of ``scan``.
    """

    def write(path: str) -> Row:
        frames = draw(videos[path][0], np.random.default_rng(videos[path][1]))
        write_atomically(path, encode_frames(frames, fps=fps, options=ENCODER))
        return {}

    scan(write, list(videos), must=True, **job)


def draw_motion(label: int, rng: np.random.Generator, *, frames: int = FRAMES) -> tuple[np.ndarray, ...]:
    """A random motion of all discs of a class: its speed and the moments of turning vary, its order does not.

    Returns:
        pixels to the right, pixels down, and growth in rounds from the smallest size to the largest; each (T,) float32,
        relative to a random start.
    """
    time, name = np.linspace(0, 1, frames, dtype=np.float32), CLASSES[label]
    still, pace = np.zeros_like(time), np.float32(rng.uniform(0.85, 1.15))
    sign = -1 if name in ("right then left", "shrinking", "circling counterclockwise") else 1
    if "then" in name:
        return sign * 60 * pace * np.abs(time - np.float32(rng.uniform(0.42, 0.58))), still, still
    if name in ("growing", "shrinking"):
        return still, still, sign * 2 * pace * time
    if "circling" in name:
        angle = 2 * math.pi * pace * time + np.float32(rng.uniform(0, 2 * math.pi))
        radius = np.float32(rng.uniform(10, 15))
        return radius * np.cos(angle), sign * radius * np.sin(angle), still  # y points down
    bounces, height = 2 if name == "bouncing twice" else 3, np.float32(rng.uniform(15, 23))
    return still, -height * np.abs(np.sin(math.pi * (bounces * time + np.float32(rng.uniform())))), still


def draw_clip(label: int, rng: np.random.Generator, *, frames: int = FRAMES) -> np.ndarray:
    """The frames of one clip of a class, uint8 (T, H, W, 3) RGB."""
    x_shift, y_shift, growth = draw_motion(label, rng, frames=frames)
    images = np.repeat(_draw_background(rng)[None], frames, axis=0)
    left, top = rng.uniform(0, (WIDTH, HEIGHT))
    places = np.ndindex(COLUMNS, ROWS)  # of a grid, each disc a little off
    for (column, row), (right, down) in zip(places, rng.uniform(-0.25, 0.25, (COLUMNS * ROWS, 2)), strict=True):
        x = x_shift + np.float32(left + (column + right) * WIDTH / COLUMNS)
        y = y_shift + np.float32(top + (row + column % 2 / 2 + down) * HEIGHT / ROWS)
        radius = SMALLEST * (LARGEST / SMALLEST) ** ((np.float32(rng.uniform()) + growth) % 1)[:, None, None]
        colour = rng.uniform(140, 240, 3).astype(np.float32)
        shade = rng.uniform(-25, 25, 2).astype(np.float32)
        # Distance of every pixel to the centre, the short way around the torus: (T, 1, W) and (T, H, 1).
        dx = (np.arange(WIDTH, dtype=np.float32) - x[:, None, None] + WIDTH / 2) % WIDTH - WIDTH / 2
        dy = (np.arange(HEIGHT, dtype=np.float32)[:, None] - y[:, None, None] + HEIGHT / 2) % HEIGHT - HEIGHT / 2
        inside = np.clip((radius**2 - dx**2 - dy**2) / (2 * radius) + 0.5, 0, 1)  # a soft edge, one pixel wide
        covered = np.nonzero(inside)
        light = ((shade[0] * dx + shade[1] * dy) / radius)[covered]
        images[covered] += (colour + light[:, None] - images[covered]) * inside[covered][:, None]
    return np.clip(images, 0, 255).astype(np.uint8)


def frames_apart(distance: str) -> int:
    """Frames from the last of the disc to the first of the rings, both included: what must be seen to match them."""
    disc, rings, _ = DISTANCES[distance]
    return rings - (disc + CUE_STAYS - 1) + 1


def choose_cues(label: int, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
    """Random cues of a label, an index into ``CUE_COLOURS``.

    Returns:
        the shade of the disc, 0 black or 1 white; colours of the rings around the black and around the white centre.
    """
    shade, other = int(rng.integers(2)), int(label + rng.integers(1, len(CUE_COLOURS))) % len(CUE_COLOURS)
    return shade, (other, label) if shade else (label, other)


def draw_cues(label: int, rng: np.random.Generator, *, distance: str = "both") -> np.ndarray:
    """The frames of one clip of the task ``context``, uint8 (T, H, W, 3) RGB; ``distance`` is one of ``DISTANCES``."""
    (shown, colours), side, place = choose_cues(label, rng), rng.integers(2), rng.integers(2)
    disc, rings, opposite = DISTANCES[distance]
    images = np.repeat(_draw_background(rng, CUE_SIDE, CUE_SIDE)[None] + 50, CUE_FRAMES, axis=0)
    _paint(images[disc : disc + CUE_STAYS], 8 + 16 * side, rng.uniform(8, 24), 7, (255 * shown,) * 3)
    for shade, colour in enumerate(colours):
        x, y = 8 + 16 * (side ^ opposite), 8 + 16 * (shade ^ place) + rng.uniform(-1, 1)
        _paint(images[rings : rings + CUE_STAYS], x, y, 7, list(CUE_COLOURS.values())[colour])
        _paint(images[rings : rings + CUE_STAYS], x, y, 4, (255 * shade,) * 3)
    return np.clip(images, 0, 255).astype(np.uint8)


def _paint(images: np.ndarray, x: float, y: float, radius: float, colour: Sequence[float]) -> None:
    """Paint a disc with a soft edge into frames (T, H, W, 3)."""
    rows, columns = np.mgrid[0 : images.shape[1], 0 : images.shape[2]]
    inside = np.clip(radius - np.hypot(columns - x, rows - y) + 0.5, 0, 1)[..., None]
    images += (np.array(colour) - images) * inside


def _draw_background(rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A still, smooth random texture of dark colours, float32 (H, W, 3)."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    texture = np.zeros((height, width, 3), np.float32)
    for _ in range(6):
        kx, ky = rng.integers(-3, 4, 2)  # whole waves across the frame: the texture wraps around as the discs do
        wave = 2 * math.pi * (kx * columns / width + ky * rows / height) + np.float32(rng.uniform(0, 2 * math.pi))
        texture += np.sin(wave)[..., None] * rng.uniform(-10, 10, 3).astype(np.float32)
    return np.clip(rng.uniform(20, 90, 3).astype(np.float32) + texture, 0, 255)
