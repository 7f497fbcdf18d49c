"""Frame folder: a video as a folder of JPEG, PNG or WebP pictures that are named by number.

``clips/jump_1`` with ``img_00001.jpg``, ``img_00002.jpg`` ... is a video whose frame 0 is the first picture. Numbers
begin at 0 or 1, with zeros in front of them or not, and alone decide on the order. Pictures of optical flow
(``flow_x_00001.jpg``, ``x_00001.jpg``, folders such as ``flow_x``) are left out. The path ``clips/jump_1#frames=10,40``
means frames 10 to 39 as a video of their own.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from gcvideo.video.decode_plan import Orientation
from gcvideo.video.pyav_decoder import DamageError, DecodeError

PICTURE = re.compile(r"(?P<front>(?!\.).*?)(?P<number>\d+)(?P<back>\D*)\.(jpe?g|png|webp)", re.IGNORECASE | re.DOTALL)
FLOW = re.compile(r"(.*[_-])?flow([_-]?[xyuv])?[_-]?|[xy]_", re.IGNORECASE | re.DOTALL)
SPAN = re.compile(r"(?P<folder>.+)#frames=(?P<first>\d{1,9}),(?P<end>\d{1,9})", re.DOTALL)
ASSUMED_FPS = 25.0  # where no rate is known, and only captions depend on it


def split_span(path: str) -> tuple[str, slice]:
    """The folder, and which of its frames, that a path means."""
    match = None if os.path.lexists(path) else SPAN.fullmatch(path)
    return (match["folder"], slice(int(match["first"]), int(match["end"]))) if match else (path, slice(None))


def find_pictures(names: Iterable[str]) -> list[re.Match[str]]:
    """The numbered pictures among the names of files, without those of optical flow."""
    return [match for match in map(PICTURE.fullmatch, names) if match and not FLOW.fullmatch(match["front"])]


def is_frame_folder(path: str) -> bool:
    """Whether a path means a folder of frames, two numbered pictures or more, or some of them."""
    folder = split_span(path)[0]
    return os.path.isdir(folder) and len(find_pictures(os.listdir(folder))) > 1


def list_files(path: str) -> list[str]:
    """The files that a video consists of: the pictures of a folder of frames in their order, else the path itself.

    Raises:
        DecodeError: the pictures of a folder are no frames of one video, and why.
    """
    folder, span = split_span(path)
    if not os.path.isdir(folder):
        return [path]
    pictures = find_pictures(sorted(os.listdir(folder)))
    kinds = {(match["front"], match["back"]): match[0] for match in pictures}
    if len(kinds) != 1:
        what = f"pictures of several kinds ({' and '.join([*kinds.values()][:2])})" if kinds else "no numbered pictures"
        raise DecodeError(f"is a folder with {what}; frames are called alike, but for their numbers")
    numbered = {int(match["number"]): match[0] for match in pictures}
    if len(numbered) < len(pictures):
        raise DecodeError("has two pictures of one number, as 1 and 01; remove one")
    gap = next((number for number in sorted(numbered) if number > 1 and number - 1 not in numbered), None)
    if gap is not None:
        raise DecodeError(f"lacks the picture before {numbered[gap]}; frames are numbered from 0 or 1 without gaps")
    if span.stop is not None and not span.start < span.stop <= len(numbered):
        raise DecodeError(f"has {len(numbered)} pictures, of which {span.start} to {span.stop} are asked for")
    return [os.path.join(folder, numbered[number]) for number in sorted(numbered)[span]]


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
        with _picture(self.files[0]) as image:
            turned = image.getexif().get(0x0112, 1) > 4  # the orientations whose rows are columns
            self.width, self.height = image.size[::-1] if turned else image.size
            self.codec = str(image.format).lower()

    def decode(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Places in ``wanted``, and frames; uint8 (H, W, 3) RGB.

        Transparency is dropped, and 16 bits are cut to 8.
        """
        for place, index in enumerate(wanted.tolist()):
            with _picture(self.files[index]) as image:
                shown = ImageOps.exif_transpose(image)
                if shown.mode[0] == "I":  # grey of 16 bits, which Pillow would clip
                    shown = Image.fromarray((np.asarray(shown) >> 8).astype(np.uint8))
                pixels = np.asarray(shown.convert("RGB"))
            if pixels.shape != (self.height, self.width, 3):
                sizes = f"{pixels.shape[1]} x {pixels.shape[0]}, not {self.width} x {self.height} as the first"
                raise DamageError(f"{os.path.basename(self.files[index])} has {sizes}")
            yield place, pixels

    def close(self) -> None:
        """Nothing is open."""


class FrameArray:
    """Frames that are decoded already, uint8 (T, H, W, 3); for the attributes see ``LibavVideo``."""

    backend, codec, orientation = "memory", "rawvideo", Orientation()

    def __init__(self, frames: np.ndarray, fps: float) -> None:
        self.frames, self.fps = frames, fps
        self.height, self.width = frames.shape[1:3]
        self.keyframes = np.arange(len(frames))
        self.times = self.keyframes / fps

    def decode(self, wanted: np.ndarray) -> np.ndarray:
        """Frames by index, rising; uint8 (len(wanted), H, W, 3)."""
        return self.frames[wanted]

    def close(self) -> None:
        """Nothing is open."""


def check_frames(path: str) -> tuple[list[int], str]:
    """Indices of the frames of a folder that cannot be read; and the reason of the first, "" where all can be."""
    folder, reasons = FrameFolder(path, None), {}
    for index in folder.keyframes:
        try:
            next(folder.decode(np.array([index])))
        except DamageError as error:
            reasons[int(index)] = str(error)
    return list(reasons), next(iter(reasons.values()), "")


@contextmanager
def _picture(file: str) -> Iterator[Any]:
    """An open picture of Pillow; what goes wrong with it is a ``DamageError``."""
    try:
        with Image.open(file) as image:
            yield image
    except Exception as error:  # Pillow raises what it meets: OSError, SyntaxError, ValueError ...
        text = "is no picture" if isinstance(error, Image.UnidentifiedImageError) else f"cannot be read: {error}"
        raise DamageError(f"{os.path.basename(file)} {text}") from error
