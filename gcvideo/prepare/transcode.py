"""Transcode videos to H.264 in MP4 with a layout that is fast to read clips from, and measure the gain."""

import io
import math
import os
import random
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from gcvideo.data.annotations import load_records, videos_under
from gcvideo.errors import DataError, VideoError
from gcvideo.files import Journal, Row, read_yaml, replacing, write_atomically
from gcvideo.prepare.jobs import WHOLE, Part, run_jobs, scan
from gcvideo.video import open_video
from gcvideo.video.mp4_tables import PREPARED
from gcvideo.video.pyav_decoder import orientation_of

# Name -> options of libx264.
PRESETS: dict[str, dict[str, str]] = read_yaml(__file__, "presets.yaml")
CRF = "23"  # libx264's default quality
JOURNAL = "transcode.jsonl"
LIMITS: dict[str, Any] = {"seconds": 3600, "memory": 8 << 30}
CLIP_FRAMES, CLIP_STRIDE = 8, 8  # the clip whose cost is measured: "8x8"


class Encoding(NamedTuple):
    """How to write videos.

    Attributes:
        preset: one of ``PRESETS``.
        short_side: in pixels; smaller videos keep their size.
        audio: keep the sound, as AAC.
    """

    preset: str = "clip"
    short_side: int = 256
    audio: bool = False


class Transcoding(NamedTuple):
    """Result of a transcode.

    Attributes:
        videos: how many have a copy now, with those of earlier runs.
        old: ``bytes`` of the originals, and ``clip_ms``, the median CPU milliseconds of opening one and decoding a
            random clip.
        new: the same of the copies.
        failures: path -> reason, of the videos that have no copy.
    """

    videos: int
    old: dict[str, float]
    new: dict[str, float]
    failures: dict[str, str]


def transcode(
    source: str | Path,
    target: str | Path,
    encoding: Encoding,
    *,
    most: int | None = None,
    workers: int | None = None,
    part: Part = WHOLE,
) -> Transcoding:
    """Transcode every video under ``source``; its copy has the same place under ``target`` and the suffix ``.mp4``.

    Videos that an earlier run has written are kept; those that failed are tried again. Originals are only read. Parts
    share the work; the whole job puts it together. Of more than ``most`` videos a random sample is taken.

    Raises:
        DataError: a folder that cannot be used, or two videos that would get the same name.
        ConfigError: ``target`` holds videos transcoded with other settings.
        PartDone: this is a part, and its videos are done.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    inside, outside = target.resolve(), source.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise DataError(f"{target}: must lie outside of {source}, and not around it")
    names = videos_under(source, files_only=True)
    if not names:
        raise DataError(f"{source}: no folder of videos in files; folders of frames are read as they are")
    names = random.Random(0).sample(names, most) if most and most < len(names) else names
    copies = {str(source / name): str(target / os.path.splitext(name)[0]) + ".mp4" for name in names}
    for copy, count in Counter(copies.values()).items():
        if count > 1:
            raise DataError(f"{source}: {count} videos would become {copy}; rename all but one")
    journal = Journal(target / JOURNAL, encoding._asdict(), rank=part.number - 1)
    journal.require_own("encoding")
    for path, copy in copies.items():
        if not os.path.isfile(copy):
            journal.forget(path)

    def copy_video(path: str) -> Row:
        Path(copies[path]).unlink(missing_ok=True)  # of the video as it was before it changed
        return {"frames": encode_video(path, copies[path], encoding)}

    rows = scan(copy_video, list(copies), journal=journal, title="transcode", part=part, **LIMITS, workers=workers)
    failures = {path: row["error"] for path, row in rows.items() if "error" in row}
    old, new = costs([(path, copy) for path, copy in copies.items() if path not in failures])
    return Transcoding(len(copies) - len(failures), old, new, failures)


def copy_annotation(annotation: str | Path, source: str | Path, target: str | Path) -> Path:
    """Write a list of the copies of an annotation's videos into ``target``; returns its path.

    Its columns are ``path``, ``start``, ``end`` and ``label`` (or ``labels``), separated by tabs; times are empty for
    whole videos.
    """
    records = load_records(annotation, root=None)
    records.require_text()
    lines = [f"path\tstart\tend\tlabel{'s' * (records.sets is not None)}\n"]
    for record in records:
        relative = os.path.relpath(record.path, source)
        if relative.startswith(os.pardir):
            raise DataError(f"{annotation}: {record.path} does not lie in {source}")
        if record.may_be_cut:
            raise DataError(f"{annotation}: whether {record.path} is one clip is not known; use the CSV for copies too")
        times = ["" if time is None else str(time) for time in (record.start, record.end)]
        lines.append("\t".join([f"{os.path.splitext(relative)[0]}.mp4", *times, f"{record.label_text}\n"]))
    copy = Path(target) / f"{Path(annotation).stem}.txt"
    write_atomically(copy, "".join(lines).encode())
    return copy


def encode_frames(frames: np.ndarray, *, fps: float, options: dict[str, str] | None = None) -> bytes:
    """Encode frames in memory.

    Args:
        frames: uint8 (T, H, W, 3) RGB. The last row or column of an odd size is left out, as 4:2:0 sampling needs.
        fps: frames per second.
        options: of libx264.

    Returns:
        the content of the MP4 file.
    """
    buffer = io.BytesIO()
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_video(source: str | Path, target: str | Path, encoding: Encoding) -> int:
    """Encode ``source`` as ``target``; returns the number of frames.

    Frames keep their times, counted from the first one; they are turned and mirrored as the metadata says. ``target``
    appears when it is complete.

    Raises:
        VideoError: the source cannot be opened, or not be decoded to its end.
    """
    with open_video(source) as video:
        expected, (height, width) = len(video), scaled_size(video.height, video.width, encoding.short_side)
    count, first, last = 0, 0, -1
    try:
        with (
            replacing(target) as temporary,
            av.open(f"file:{source}", metadata_errors="replace") as old,
            # The moov box in front: opening a file then takes one read.
            av.open(f"file:{temporary}", "w", format="mp4", options={"movflags": "+faststart"}) as new,
        ):
            new.metadata["comment"] = PREPARED.decode()
            track = old.streams.video[0]
            track.codec_context.thread_count = 1  # one worker process a core already
            options = {"crf": CRF, "threads": "1", **PRESETS[encoding.preset]}
            pictures = new.add_stream("libx264", rate=track.average_rate or 25, options=options)
            pictures.height, pictures.width, pictures.pix_fmt = height, width, "yuv420p"
            pictures.codec_context.time_base = track.time_base
            tracks: list[Any] = [track, *(old.streams.audio[:1] if encoding.audio else ())]
            sounds = [new.add_stream("aac", rate=audio.codec_context.sample_rate or 44_100) for audio in tracks[1:]]
            for packet in old.demux(tracks):
                for frame in packet.decode():
                    if packet.stream is not track:
                        frame.pts = None  # counted again from the samples
                        new.mux(sounds[0].encode(frame))
                        continue
                    first = first if count else frame.pts or 0
                    # Without a time, or with one that does not rise, a frame comes one tick after its predecessor.
                    last = last + 1 if frame.pts is None else max(last + 1, frame.pts - first)
                    picture = _upright(frame).reformat(width, height, "yuv420p", interpolation="BICUBIC")
                    picture.pts, picture.time_base = last, frame.time_base
                    picture.pict_type = 0  # the encoder chooses key frames, not the source
                    new.mux(pictures.encode(picture))
                    count += 1
            for stream in (pictures, *sounds):
                new.mux(stream.encode(None))
            if count != expected:
                raise VideoError(source, f"only {count} of {expected} frames can be decoded")
    except av.FFmpegError as error:
        raise VideoError(source, f"cannot be transcoded ({str(error).splitlines()[0]})") from error
    return count


def _upright(frame: Any) -> Any:
    """A frame turned and mirrored as its metadata says."""
    orientation = orientation_of(frame)
    if not any(orientation):
        return frame
    rgb = orientation.apply(frame.to_ndarray(format="rgb24"))
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of the same shape with the given short side, never larger than before.

    Both are even, as 4:2:0 sampling needs.
    """
    scale = min(1.0, short_side / min(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def costs(pairs: list[tuple[str, str]], *, sample: int = 24) -> list[dict[str, float]]:
    """Bytes and CPU milliseconds of a clip, see ``Transcoding``, of originals and of copies, measured alternately."""
    chosen = random.Random(0).sample(pairs, min(sample, len(pairs)))
    jobs = run_jobs(lambda two: [[*map(_clip_ms, two)] for _ in range(6)], chosen, title="measure", workers=1, **LIMITS)
    rounds = [both for _, found, _ in jobs for both in (found or [])[1:]]  # the first one also imports the decoder
    medians = np.median(rounds or [[math.nan, math.nan]], axis=0).tolist()
    sizes = np.sum([[*map(os.path.getsize, pair)] for pair in pairs] or [[0, 0]], axis=0).tolist()
    return [{"bytes": size, "clip_ms": cost} for size, cost in zip(sizes, medians, strict=True)]


def _clip_ms(path: str) -> float:
    """CPU milliseconds, over all threads, of opening a video and decoding a random clip of 8 frames, stride 8."""
    start = time.process_time()
    with open_video(path) as video:
        begin = random.randrange(max(1, len(video) - CLIP_FRAMES * CLIP_STRIDE + 1))
        video.frames(np.minimum(begin + CLIP_STRIDE * np.arange(CLIP_FRAMES), len(video) - 1))
    return 1000 * (time.process_time() - start)
