"""Decode whole videos and list those that are damaged."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from gcvideo.data.annotations import load_records
from gcvideo.data.bad_videos import Failure
from gcvideo.errors import VideoError
from gcvideo.files import write_atomically
from gcvideo.journal import Journal, Row
from gcvideo.prepare.jobs import reason_of, scan
from gcvideo.video import open_video
from gcvideo.video.tar_members import local_path


class Verification(NamedTuple):
    """Result of a verification.

    Attributes:
        videos: how many were decoded.
        frames: how many frames the sound ones have.
        failures: the others, and why.
    """

    videos: int
    frames: int
    failures: Sequence[Failure]


def verify(
    annotation: str | Path,
    quarantine: str | Path,
    *,
    root: str | Path | None = None,
    workers: int | None = None,
    seconds: float = 600,
    memory: int = 4 << 30,
) -> Verification:
    """Decode every frame of every video, in processes that may die; write the list of those that are damaged.

    An interrupted run is resumed from a journal beside the list.

    Args:
        annotation: anything that ``load_records`` reads.
        quarantine: the list to write: a JSON object (id, path, reason) a line, as training reads it.
        root: folder of the videos; by default the annotation's own folder.
        workers: processes at a time; by default one a core.
        seconds: time limit of one video.
        memory: bytes that decoding one video may take.

    Raises:
        DataError: the annotation cannot be used.
    """
    records = load_records(annotation, root=root)
    paths = [record.path for record in records]
    journal = Journal(f"{quarantine}.partial", {"format": 1})
    rows = scan(verify_video, paths, journal=journal, title="verify", seconds=seconds, memory=memory, workers=workers)
    failures = [Failure(r.id, r.path, rows[r.path]["error"]) for r in records if "error" in rows[r.path]]
    lines = [json.dumps(failure._asdict(), ensure_ascii=False) + "\n" for failure in failures]
    write_atomically(quarantine, "".join(lines).encode())
    journal.remove()
    return Verification(len(rows), sum(row.get("frames", 0) for row in rows.values()), failures)


def verify_video(path: str) -> Row:
    """Decode a video from beginning to end, then read a clip of it as training does.

    Damage that decoders hide, by showing part of another picture, counts: decoding is strict.

    Raises:
        VideoError: the video is damaged, and how.
    """
    with open_video(path) as video:
        expected = len(video)
        decoded = _count_frames(path)
        if decoded != expected:
            raise VideoError(path, f"only {decoded} of {expected} frames can be decoded")
        video.frames(np.linspace(0, expected - 1, num=8).round().astype(int))
    return {"frames": expected}


def _count_frames(path: str) -> int:
    """Number of frames of a strict decode."""
    count = 0
    try:
        # A file must not be taken for a URL or open one, for any name or content that it may have.
        options = {"protocol_whitelist": "file"}
        with local_path(path) as file, av.open(f"file:{file}", metadata_errors="replace", options=options) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "explode"}
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise VideoError(path, f"is damaged at frame {count}")
                count += 1
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise VideoError(path, f"is damaged at frame {count} ({reason_of(error)})") from error
    return count
