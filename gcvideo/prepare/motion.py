"""Procedural motion: endless clips of shapes, cameras and jointed bodies, whose classes are kinds of motion.

They are drawn while a network trains, and show nobody's videos. A clip is a pure function of (seed, epoch, slot). All
looks are random and independent of the class: textures, colours, sizes, speeds, sides, cameras, lights, occluders,
bystanders, noise and the artefacts of compression.
"""

import io
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw

from gcvideo.config import DataConfig
from gcvideo.data.dataset import ClipBatch, ClipDataset
from gcvideo.data.records import RecordTable
from gcvideo.data.sampling import sample_rng
from gcvideo.data.worker_pool import Hold
from gcvideo.files import Journal, replacing
from gcvideo.prepare.bodies import ACTIONS, TABLE, Body, Motion, courses, value
from gcvideo.prepare.synthetic import write_drawn

Range = tuple[float, float]
CLASSES = (
    *(f"shape {name}" for name in TABLE["planes"]),
    *(f"camera {name}" for name in TABLE["camera"]),
    *(f"body {name}" for name in ACTIONS),
)
PAIRS = ("parting", "meeting")  # planes of which every other one goes the other way
NOISE = np.random.default_rng(1).standard_normal(1 << 20, dtype=np.float32)
CLIPS = 100  # of each class in an epoch
TEXTURES, TEXTURE = 160, 384  # number, and height and width in pixels


class MotionClips(ClipDataset):
    """Training clips of procedural motion, for ``data.dataset``: every epoch has other clips of the same classes.

    The first epochs are easier: their clips have fewer other things, less noise and better light.

    Of ``data``, frames, crop and augment count. Clips are not flipped: a mirrored one can belong to another class.

    Args:
        data: shape and augmentation of the clips.
        seed: of the run.
    """

    def __init__(self, *, data: DataConfig, seed: int) -> None:
        names = [f"{name}/{number}" for number in range(CLIPS) for name in CLASSES]
        labels = np.arange(len(names)) % len(CLASSES)
        records = RecordTable(ids=names, paths=names, labels=labels, classes=CLASSES, source="procedural motion")
        super().__init__(records, data=data, seed=seed)
        textures()  # before worker processes are forked, so that they share them

    def sample(self, epoch: int, slot: int, hold: Hold = lambda index: None) -> ClipBatch:
        """The clips of a slot, drawn at once."""
        rng, index = sample_rng(self.seed, epoch, slot), slot % len(self)
        label, clutter = int(self.records.labels[index]), min(0.2 + epoch / 10, 1.0)
        clips = []
        for _ in range(self.data.augment.clips_per_video):
            drawn = draw_clip(label, rng, frames=self.data.frames, size=self.data.crop, clutter=clutter)
            clip = torch.from_numpy(drawn).permute(3, 0, 1, 2).contiguous()
            clips.append(clip if self._augment is None else self._augment(clip, rng))
        labels = torch.full((len(clips),), label)
        return ClipBatch(torch.stack(clips), labels, torch.full_like(labels, index), [])


def write_samples(folder: str | Path, *, per_class: int = 4, seed: int = 0, workers: int | None = None) -> Path:
    """Write clips of every class as videos of 16 frames of 96 x 96, in a folder a class, and a picture of all classes.

    Args:
        folder: created if it does not exist; videos of the same seed are kept, others of the same names replaced.
        per_class: videos of each class.
        seed: the same seed gives the same videos.
        workers: processes that draw and encode; by default one a core.

    Returns:
        the contact sheet ``sheet.png``: the first clip of each class, a row each, in the order of ``CLASSES`` down the
        left half and then the right.

    Raises:
        DataError: a video cannot be written.
    """
    folder = Path(folder).expanduser()
    draw = partial(draw_clip, frames=16, size=96)
    pairs = np.ndindex(len(CLASSES), per_class)
    videos = {f"{folder / CLASSES[label]}/{n}.mp4": (label, (seed, label, n)) for label, n in pairs}
    journal = Journal(folder / "motion.jsonl", {"seed": seed})
    write_drawn(videos, draw, fps=8, journal=journal, title="procedural motion", workers=workers)
    rows = np.stack([draw(label, np.random.default_rng((seed, label, 0)))[::2] for label in range(len(CLASSES))])
    rows = np.concatenate([rows, np.zeros_like(rows[: len(rows) % 2])])
    sheet = rows.reshape(2, -1, *rows.shape[1:]).transpose(1, 3, 0, 2, 4, 5).reshape(len(rows) // 2 * 96, -1, 3)
    with replacing(folder / "sheet.png") as temporary:
        Image.fromarray(sheet).save(temporary, "PNG")
    return folder / "sheet.png"


def draw_clip(label: int, rng: Generator, *, frames: int, size: int, clutter: float = 1.0) -> np.ndarray:
    """A clip of a class, uint8 (T, H, W, 3) RGB.

    Args:
        label: of ``CLASSES``.
        rng: decides everything that is random.
        frames: T; the motion covers the clip at any number.
        size: H and W. The pictures are drawn twice as large and then reduced, which smooths edges.
        clutter: how much there is of what makes a clip difficult, in [0, 1].
    """
    kind, _, motion = CLASSES[label].partition(" ")
    u = (np.arange(frames) + 0.5) / frames - 0.5
    q = 2 * np.pi * (min(rng.uniform(0.8, 2.4), frames / 4) * u + rng.random())  # at least four frames a round
    side, still, camera = 2 * size, _plane("still", u, q, 1.0), _shaky_camera(u, rng)
    if kind == "camera":
        camera = _after(_plane(motion, u, q, rng.uniform(0.4, 1)), camera)
    ground, number = Surface(rng), rng.choice(4, p=[0.5, 0.25, 0.15, 0.1]) if rng.random() < clutter else 0
    drawers = [_shape(still, camera, side, rng, (0.04, 0.2)) for _ in range(number)]
    if rng.random() < 0.25 * clutter:  # a bystander
        drawers.append(Body("stands", u, q + 1, camera, side, rng, 0.7).draw)
    if kind == "shape":
        z, b = _plane(motion, u, q, rng.uniform(0.4, 1))
        pair = np.exp(2j * np.pi * rng.random()) * np.array([1, -1])  # they go opposite ways
        ways = pair if motion in PAIRS else np.ones(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
        centre = 0j if motion in PAIRS else None
        drawers += [_shape((z, b * way), camera, side, rng, (0.08, 0.26), centre) for way in ways]
    if kind == "body":
        if rng.random() < 0.25:  # another one does the same
            drawers.append(Body(motion, u, q + rng.uniform(0, 2 * np.pi), camera, side, rng, 0.7).draw)
        drawers.append(Body(motion, u, q, camera, side, rng).draw)
    if rng.random() < 0.15 * clutter:  # something in front
        drawers.append(_shape(still, camera, side, rng, (0.05, 0.15)))
    pictures = []
    for k, view in enumerate(zip(*camera, strict=True)):
        picture = ground.picture(*view, side, (0, 0, side, side))
        for draw in drawers:
            draw(picture, k)
        pictures.append(picture.reduce(2))
    return _film(pictures, rng, clutter)


def _plane(name: str, u: np.ndarray, q: np.ndarray, amount: float) -> Motion:
    """A motion of ``motions.yaml``."""
    entry, time = TABLE["planes"][name], courses(u, q)
    x, y, turn, growth = (amount * value(entry.get(key, 0), time) for key in ("x", "y", "turn", "growth"))
    return np.exp(growth + 1j * turn), x + 1j * y


def _after(outer: Motion, inner: Motion) -> Motion:
    """The inner motion, then the outer one."""
    return outer[0] * inner[0], outer[0] * inner[1] + outer[1]


def _shaky_camera(u: np.ndarray, rng: Generator) -> Motion:
    """A camera that stands in half of the clips, and else drifts and shakes a little."""
    growth, roll, x, y = rng.normal(0, [0.08, 0.04, 0.06, 0.06]) * (rng.random() < 0.5)
    shake = rng.normal(0, rng.uniform(0, 0.012), (2, len(u))) * (rng.random() < 0.25)
    return np.exp((growth + 1j * roll) * u), (x + 1j * y) * u + shake[0] + 1j * shake[1]


def _shape(
    motion: Motion, camera: Motion, side: int, rng: Generator, radius: Range, centre: complex | None = None
) -> Callable[[Image.Image, int], None]:
    """What draws a frame of a textured polygon of a random radius in a range that moves about its own centre."""
    count = int(rng.integers(3, 16))
    angles = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
    outline = rng.uniform(*radius) * np.exp(1j * angles) * rng.uniform(0.6, 1, count)
    outline = (outline.real * rng.uniform(0.4, 1) + 1j * outline.imag) * np.exp(2j * np.pi * rng.random())
    place = complex(*rng.uniform(-0.3, 0.3, 2)) if centre is None else centre
    z, b = _after(camera, (motion[0], motion[1] + place))
    points = ((z[:, None] * outline + b[:, None] + (0.5 + 0.5j)) * side).view(float).reshape(len(z), -1, 2)
    corners = np.concatenate([points.min(axis=1), points.max(axis=1) + 1], axis=1)
    boxes, surface = corners.clip(0, side).astype(int).tolist(), Surface(rng)

    def draw(picture: Image.Image, k: int) -> None:
        left, top, right, bottom = box = boxes[k]
        if left < right and top < bottom:
            mask = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(mask).polygon((points[k] - box[:2]).ravel().tolist(), fill=255)
            picture.paste(surface.picture(z[k], b[k], side, box), (left, top), mask)

    return draw


def _film(pictures: list[Image.Image], rng: Generator, clutter: float) -> np.ndarray:
    """What light, lens, sensor and compression make of the pictures; uint8 (T, H, W, 3)."""
    if rng.random() < 0.2 * clutter:  # low resolution
        size = pictures[0].size
        small = (round(size[0] * rng.uniform(0.35, 0.8)),) * 2
        pictures = [p.resize(small, Image.Resampling.BOX).resize(size, Image.Resampling.BILINEAR) for p in pictures]
    if rng.random() < 0.15 * clutter:
        pictures = [_compressed(picture, int(rng.integers(10, 50))) for picture in pictures]
    clip = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float32)
    frames, height, width = clip.shape[:3]
    if rng.random() < 0.1:
        clip[:] = clip.mean(axis=3, keepdims=True)
    gain = rng.uniform(0.15, 0.5) if rng.random() < 0.15 * clutter else rng.uniform(0.7, 1.2)  # dark or not
    tint = gain * rng.uniform(0.85, 1.15, 3)
    light = np.ones((frames, 1, 1, 1))
    if rng.random() < 0.2 * clutter:
        light += rng.normal(0, 0.06, (frames, 1, 1, 1))  # flicker
    if rng.random() < 0.4:  # light from one side
        ramp = rng.normal(0, 0.3, 2)[:, None] * (np.linspace(-1, 1, height), np.linspace(-1, 1, width))
        light = light * np.exp(ramp[0][:, None, None] + ramp[1][:, None])
    clip *= (light * tint).astype(np.float32)
    clip += np.float32(rng.uniform(-20, 30) * min(gain, 1))
    start = rng.integers(NOISE.size - clip.size) if NOISE.size > clip.size else 0
    clip += np.resize(NOISE[start:], clip.shape) * np.float32(rng.uniform(0, 9) * clutter)
    return clip.clip(0, 255).astype(np.uint8)


def _compressed(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


class Surface:
    """A random piece of a texture, fixed to a moving plane."""

    def __init__(self, rng: Generator) -> None:
        self.texture = textures()[rng.integers(TEXTURES)]
        self.centre = TEXTURE / 2 * (1 + 1j) + complex(*rng.uniform(-25, 25, 2))
        self.pixels = rng.uniform(100, 170)  # of the texture in a width of the frame

    def picture(self, z: complex, b: complex, side: int, box: tuple[int, int, int, int]) -> Image.Image:
        """The surface after a motion, RGB: a box (left, top, right, bottom) of a picture of ``side`` pixels."""
        step = self.pixels / (z * side)
        start = self.centre - self.pixels * (0.5 + 0.5j + b) / z + step * complex(*box[:2])
        data = (step.real, -step.imag, start.real, step.imag, step.real, start.imag)
        return self.texture.transform((box[2] - box[0], box[3] - box[1]), Image.Transform.AFFINE, data)


@cache
def textures() -> list[Image.Image]:
    """The textures of all surfaces, RGB, ``TEXTURE`` pixels wide and high; always the same."""
    rng, made = np.random.default_rng(0), list[Image.Image]()
    kinds = (_clouds, _stripes, _patches, _pebbles)
    for number in range(TEXTURES):
        made.append(_scene(made, rng) if number % 5 == 4 else kinds[number % 5](rng))
    return made


def _coloured(values: np.ndarray, rng: Generator) -> Image.Image:
    """A picture of values (H, W, 1 or 3) in [0, 1], between two random colours."""
    low, high = rng.uniform(0, 255, (2, 3))
    grey = rng.random() ** 0.5  # most surfaces have weak colours
    low, high = (colour + grey * (colour.mean() - colour) for colour in (low, high))
    return Image.fromarray((low + (high - low) * values).clip(0, 255).astype(np.uint8))


def _grid(count: int, rng: Generator, resample: Image.Resampling) -> np.ndarray:
    cells = Image.fromarray(rng.integers(0, 256, (count, count, 3), dtype=np.uint8))
    return np.asarray(cells.resize((TEXTURE, TEXTURE), resample), np.float32) / 255


def _clouds(rng: Generator) -> Image.Image:
    weights = rng.uniform(0.4, 0.8) ** np.arange(6)
    octaves = [_grid(2 ** (2 + i), rng, Image.Resampling.BICUBIC) * weight for i, weight in enumerate(weights)]
    return _coloured((np.sum(octaves, axis=0) / weights.sum() * 2 - 0.5).clip(0, 1), rng)


def _stripes(rng: Generator) -> Image.Image:
    y, x = np.mgrid[:TEXTURE, :TEXTURE]
    along, across, slope = *rng.uniform(0.05, 0.6, 2), rng.normal()
    waves = (np.sin((x + y * slope) * along) + rng.integers(2) * np.sin(y * across))[..., None]
    return _coloured(np.where(waves > 0, 1.0, 0.0) if rng.random() < 0.5 else waves / 4 + 0.5, rng)


def _patches(rng: Generator) -> Image.Image:
    return _coloured(_grid(int(rng.integers(4, 40)), rng, Image.Resampling.NEAREST), rng)


def _pebbles(rng: Generator) -> Image.Image:
    picture = Image.new("RGB", (TEXTURE, TEXTURE), tuple(rng.integers(0, 256, 3).tolist()))
    pen, size = ImageDraw.Draw(picture), rng.uniform(4, 50)
    for x, y, width, height in (rng.random((int(rng.integers(20, 250)), 4)) * [TEXTURE, TEXTURE, size, size]).tolist():
        draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        draw((x, y, x + width + 2, y + height + 2), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return picture


def _scene(made: list[Image.Image], rng: Generator) -> Image.Image:
    """A wall or sky above a floor, with a few things that stand there."""
    wall, floor, *things = (made[i] for i in rng.integers(len(made), size=rng.integers(4, 11)))
    picture, horizon = wall.copy(), int(rng.uniform(0.4, 0.7) * TEXTURE)
    picture.paste(floor.resize((TEXTURE, TEXTURE - horizon)), (0, horizon))
    for thing in things:
        width, height, x, y = rng.integers([8, 20, 0, TEXTURE // 3], [60, 120, TEXTURE, TEXTURE * 2 // 3]).tolist()
        picture.paste(thing.resize((width, height)), (x, y - height))
    return picture
