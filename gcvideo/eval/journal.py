"""The answers of a test so far, kept on disk, so that a test that was cut off goes on where it stood."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.eval.predictions import VideoScores
from gcvideo.files import write_atomically

COLUMNS = [field.name for field in dataclasses.fields(VideoScores)]


class Journal:
    """A folder of finished videos. Videos that failed are not kept: they are tried again.

    Each process adds part files of its own. A later run reads all parts, whatever number of processes wrote them.

    Args:
        folder: where the parts go.
        key: everything the scores depend on (checkpoint, views, annotation ...); parts of another key are left unread.
        rank: of this process.
        seconds: how often a part is written; at most so much work is lost.
    """

    def __init__(self, folder: str | Path, key: dict[str, Any], *, rank: int = 0, seconds: float = 10.0) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(folder)
        self.prefix = f"{digest}-"
        self.rank = rank
        self.seconds = seconds
        self._waiting: list[VideoScores] = []
        self._written = time.monotonic()

    def read(self) -> list[VideoScores]:
        """The finished videos, each once; a part that cannot be read counts for nothing."""
        videos: dict[int, VideoScores] = {}
        for path in sorted(self.folder.glob(f"{self.prefix}*.npz")):
            try:
                with np.load(path, allow_pickle=False) as part:
                    columns = [part[name] for name in COLUMNS]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            for row in zip(*columns, strict=True):
                plain: list[Any] = [value if isinstance(value, np.ndarray) else value.item() for value in row]
                video = VideoScores(*plain)
                videos[video.index] = video
        return [videos[index] for index in sorted(videos)]

    def add(self, video: VideoScores) -> None:
        """Take note of a finished video; it reaches the disk within ``seconds``."""
        self._waiting.append(video)
        if time.monotonic() - self._written >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            first = self._waiting[0].index
            buffer = io.BytesIO()
            columns = {name: np.stack([np.asarray(getattr(v, name)) for v in self._waiting]) for name in COLUMNS}
            np.savez(buffer, **columns)  # type: ignore[arg-type]  # numpy's stub takes the flags for arrays too
            write_atomically(self.folder / f"{self.prefix}rank{self.rank}-{first:08d}.npz", buffer.getvalue())
            self._waiting.clear()
        self._written = time.monotonic()

    def remove(self) -> None:
        """Forget this test's videos: it is done and its results are written, or it is to start anew."""
        self._waiting.clear()
        for part in self.folder.glob(f"{self.prefix}*.npz"):
            part.unlink(missing_ok=True)
        with suppress(OSError):  # absent, or parts of another test are left in it
            self.folder.rmdir()
