"""Textured surfaces of procedural motion, which move as a plane does."""

import functools

import numpy as np
from PIL import Image, ImageDraw
from PIL.Image import Transform

TEXTURES, TEXTURE = 160, 384  # number, and height and width in pixels


class Surface:
    """A random piece of a texture, fixed to a moving plane."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.texture = textures()[rng.integers(TEXTURES)]
        self.centre = TEXTURE / 2 * (1 + 1j) + complex(*rng.uniform(-25, 25, 2))
        self.pixels = rng.uniform(100, 170)  # of the texture in a width of the frame

    def picture(self, z: complex, b: complex, side: int, box: tuple[int, int, int, int]) -> Image.Image:
        """The surface after a motion, RGB: a box (left, top, right, bottom) of a picture of ``side`` pixels."""
        step = self.pixels / (z * side)
        start = self.centre - self.pixels * (0.5 + 0.5j + b) / z + step * complex(*box[:2])
        data = (step.real, -step.imag, start.real, step.imag, step.real, start.imag)
        return self.texture.transform((box[2] - box[0], box[3] - box[1]), Transform.AFFINE, data)


@functools.cache
def textures() -> list[Image.Image]:
    """The textures of all surfaces, RGB, ``TEXTURE`` pixels wide and high; always the same."""
    rng, made = np.random.default_rng(0), list[Image.Image]()
    kinds = (_clouds, _stripes, _patches, _pebbles)
    for number in range(TEXTURES):
        made.append(_scene(made, rng) if number % 5 == 4 else kinds[number % 5](rng))
    return made


def _coloured(values: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A picture of values (H, W, 1 or 3) in [0, 1], between two random colours."""
    low, high = rng.uniform(0, 255, (2, 3))
    grey = rng.random() ** 0.5  # most surfaces have weak colours
    low, high = (colour + grey * (colour.mean() - colour) for colour in (low, high))
    return Image.fromarray((low + (high - low) * values).clip(0, 255).astype(np.uint8))


def _grid(count: int, rng: np.random.Generator, resample: Image.Resampling) -> np.ndarray:
    cells = Image.fromarray(rng.integers(0, 256, (count, count, 3), dtype=np.uint8))
    return np.asarray(cells.resize((TEXTURE, TEXTURE), resample), np.float32) / 255


def _clouds(rng: np.random.Generator) -> Image.Image:
    weights = rng.uniform(0.4, 0.8) ** np.arange(6)
    octaves = [_grid(2 ** (2 + i), rng, Image.Resampling.BICUBIC) * weight for i, weight in enumerate(weights)]
    return _coloured((np.sum(octaves, axis=0) / weights.sum() * 2 - 0.5).clip(0, 1), rng)


def _stripes(rng: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[:TEXTURE, :TEXTURE]
    along, across, slope = *rng.uniform(0.05, 0.6, 2), rng.normal()
    waves = (np.sin((x + y * slope) * along) + rng.integers(2) * np.sin(y * across))[..., None]
    return _coloured(np.where(waves > 0, 1.0, 0.0) if rng.random() < 0.5 else waves / 4 + 0.5, rng)


def _patches(rng: np.random.Generator) -> Image.Image:
    return _coloured(_grid(int(rng.integers(4, 40)), rng, Image.Resampling.NEAREST), rng)


def _pebbles(rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", (TEXTURE, TEXTURE), tuple(rng.integers(0, 256, 3).tolist()))
    pen, size = ImageDraw.Draw(picture), rng.uniform(4, 50)
    for x, y, width, height in (rng.random((int(rng.integers(20, 250)), 4)) * [TEXTURE, TEXTURE, size, size]).tolist():
        draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        draw((x, y, x + width + 2, y + height + 2), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return picture


def _scene(made: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    """A wall or sky above a floor, with a few things that stand there."""
    wall, floor, *things = (made[i] for i in rng.integers(len(made), size=rng.integers(4, 11)))
    picture, horizon = wall.copy(), int(rng.uniform(0.4, 0.7) * TEXTURE)
    picture.paste(floor.resize((TEXTURE, TEXTURE - horizon)), (0, horizon))
    for thing in things:
        width, height, x, y = rng.integers([8, 20, 0, TEXTURE // 3], [60, 120, TEXTURE, TEXTURE * 2 // 3]).tolist()
        picture.paste(thing.resize((width, height)), (x, y - height))
    return picture
