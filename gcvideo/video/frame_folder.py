"""Frame folder: a video as a folder of JPEG, PNG or WebP pictures that are named by number.

``clips/jump_1`` with ``img_00001.jpg``, ``img_00002.jpg`` ... is a video whose frame 0 is the first picture. Numbers
begin at 0 or 1, with zeros in front of them or not, and alone decide on the order. Pictures of optical flow
(``flow_x_00001.jpg``, ``x_00001.jpg``, folders such as ``flow_x``) are left out. The path ``clips/jump_1#frames=10,40``
means frames 10 to 39 as a video of their own.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable

import numpy as np

from gcvideo.video.decode_plan import Orientation
from gcvideo.video.pyav_decoder import DamageError, DecodeError

PICTURE = re.compile(r"(?P<front>.*?)(?P<number>\d+)(?P<back>\D*)\.(jpe?g|png|webp)", re.IGNORECASE | re.DOTALL)
FLOW = re.compile(r"(.*[_-])?flow([_-]?[xyuv])?[_-]?|[xy]_", re.IGNORECASE | re.DOTALL)
SPAN = re.compile(r"(?P<folder>.+)#frames=(?P<first>\d{1,9}),(?P<end>\d{1,9})", re.DOTALL)
ASSUMED_FPS = 25.0  # where no rate is known, and only captions depend on it
TURNED = 5  # EXIF orientations from here on swap rows and columns


def split_span(path: str) -> tuple[str, slice]:
    """The folder, and which of its frames, that a path means."""
    match = None if os.path.lexists(path) else SPAN.fullmatch(path)
    return (match["folder"], slice(int(match["first"]), int(match["end"]))) if match else (path, slice(None))


def are_frames(names: Iterable[str]) -> bool:
    """Whether files of these names in one folder are a video: two numbered pictures or more that are no flow."""
    matches = (PICTURE.fullmatch(name) for name in names if name[:1] != ".")
    pictures = (match for match in matches if match and not FLOW.fullmatch(match["front"]))
    return next(pictures, None) is not None and next(pictures, None) is not None


def is_frame_folder(path: str) -> bool:
    """Whether a path means a folder of frames, or some of them."""
    folder = split_span(path)[0]
    return os.path.isdir(folder) and are_frames(os.listdir(folder))


def list_files(path: str) -> list[str]:
    """The files that a video consists of: the pictures of a folder of frames in their order, else the path itself.

    Raises:
        DecodeError: the pictures of a folder are no frames of one video, and why.
    """
    folder, span = split_span(path)
    if not os.path.isdir(folder):
        return [path]
    numbered: dict[int, str] = {}
    fronts: dict[tuple[str, str], str] = {}  # what stands around the numbers
    for name in sorted(os.listdir(folder)):
        match = PICTURE.fullmatch(name)
        if match is None or name[0] == "." or FLOW.fullmatch(match["front"]):
            continue
        number = int(match["number"])
        if number in numbered:
            raise DecodeError(f"has two pictures of number {number}: {numbered[number]} and {name}; remove one")
        numbered[number] = name
        fronts.setdefault((match["front"], match["back"]), name)
    if len(fronts) > 1:
        names = " and ".join([*fronts.values()][:2])
        raise DecodeError(f"holds pictures of several kinds ({names}); frames have one name and a number")
    if not numbered:
        raise DecodeError("is a folder without numbered pictures (JPEG, PNG or WebP; optical flow does not count)")
    numbers = sorted(numbered)
    if numbers[0] > 1:
        raise DecodeError(f"begins with {numbered[numbers[0]]}; frames are numbered from 0 or 1 on")
    for number, following in itertools.pairwise(numbers):
        if following != number + 1:
            between = f"{numbered[number]} and {numbered[following]}"
            raise DecodeError(f"lacks {following - number - 1} pictures between {between}; number them without gaps")
    if span.stop is not None and not span.start < span.stop <= len(numbers):
        raise DecodeError(f"has {len(numbers)} pictures, of which {span.start} to {span.stop} are asked for")
    return [os.path.join(folder, numbered[number]) for number in numbers[span]]


def count_frames(path: str) -> int | None:
    """How many frames a folder has; None of a file, and of a folder that will be refused when it is opened."""
    try:
        return len(list_files(path)) if os.path.isdir(path) else None
    except DecodeError:
        return None


class FrameFolder:
    """A folder of frames; for the attributes see ``LibavVideo``.

    Args:
        path: of the folder, or of some of its frames (see ``split_span``).
        fps: frames per second, where known.

    Raises:
        DecodeError: its pictures are no frames of one video, and why.
        DamageError: the first picture cannot be read.
    """

    backend, orientation = "pillow", Orientation()

    def __init__(self, path: str, fps: float | None) -> None:
        self.files = list_files(path)
        self.timed, self.fps = fps is not None, fps or ASSUMED_FPS
        self.keyframes = np.arange(len(self.files))
        self.times = self.keyframes / self.fps
        self.height, self.width, self.codec = _read_size(self.files[0])

    def decode(self, wanted: np.ndarray) -> np.ndarray:
        """Frames by index, rising; uint8 (len(wanted), H, W, 3)."""
        frames = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        for frame, index in zip(frames, wanted.tolist(), strict=True):
            pixels = _read_picture(self.files[index])
            if pixels.shape != frame.shape:
                sizes = f"{pixels.shape[1]} x {pixels.shape[0]}, not {self.width} x {self.height} as the first"
                raise DamageError(f"{os.path.basename(self.files[index])} has {sizes}")
            frame[:] = pixels
        return frames

    def close(self) -> None:
        """Nothing is open."""


def check_frames(path: str) -> tuple[list[int], str]:
    """Indices of the frames of a folder that cannot be read; and the reason of the first, "" where all can be."""
    folder, reasons = FrameFolder(path, None), {}
    for index in folder.keyframes.tolist():
        try:
            folder.decode(np.array([index]))
        except DamageError as error:
            reasons[index] = str(error)
    return list(reasons), next(iter(reasons.values()), "")


def _read_size(file: str) -> tuple[int, int, str]:
    """Height and width of a picture as displayed, and its format, from its header."""
    from PIL import ExifTags, Image

    try:
        with Image.open(file) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= TURNED
            width, height = image.size[::-1] if turned else image.size
            return height, width, str(image.format).lower()
    except Exception as error:  # Pillow raises what it meets: OSError, SyntaxError, ValueError ...
        raise DamageError(_why(file, error)) from error


def _read_picture(file: str) -> np.ndarray:
    """A picture of any mode as displayed, uint8 (H, W, 3) RGB; transparency is dropped, 16 bits are cut to 8."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            shown = ImageOps.exif_transpose(image)
            if shown.mode[0] == "I":  # grey of 16 bits, which Pillow would clip
                shown = Image.fromarray((np.asarray(shown) >> 8).astype(np.uint8))
            return np.asarray(shown.convert("RGB"))
    except Exception as error:
        raise DamageError(_why(file, error)) from error


def _why(file: str, error: Exception) -> str:
    text = "is no picture" if type(error).__name__ == "UnidentifiedImageError" else f"cannot be read: {error}"
    return f"{os.path.basename(file)} {text}"
