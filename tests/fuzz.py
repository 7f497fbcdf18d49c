"""Damaged videos, made from a seed, and a reader that is fed with them in a process of its own.

Run ``python -m tests.fuzz --count 3000`` for the long version; the suite runs a hundred files of the same kind. Every
file must end in frames or in a ``VideoError``: a dead process, a hang or any other exception is a failure.
"""

from __future__ import annotations

import argparse
import collections
import json
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.videos import moving_frames, write_video

SECONDS_PER_FILE = 60.0  # more is a hang; the machine may be busy


def sources(folder: Path) -> list[bytes]:
    """Sound files of several containers and codecs, and a few strange ones."""
    frames = moving_frames(20, 96, 128)
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    files = [
        write_video(folder / "a.mp4", frames, gop=8, options={"preset": "medium"}),
        write_video(folder / "b.mp4", frames, gop=8, container_options={"movflags": "faststart"}),
        write_video(folder / "c.mp4", frames, codec="libx265", gop=8),
        write_video(folder / "d.mp4", frames, audio=True),
        write_video(folder / "e.mp4", frames, gop=8, container_options=fragments),
        write_video(folder / "f.mkv", frames, gop=8, options={"preset": "medium"}),
        write_video(folder / "g.webm", frames, codec="libvpx-vp9", gop=8),
        write_video(folder / "h.avi", frames, codec="mpeg4", gop=8, options={"bf": "2"}),
        write_video(folder / "i.ts", frames, codec="mpeg2video", gop=8),
        write_video(folder / "j.mp4", frames, codec="libsvtav1", gop=8),
        write_video(folder / "k.avi", frames, codec="mjpeg", pixel_format="yuvj420p"),
        write_video(folder / "l.mp4", frames[:1]),
        write_video(folder / "m.mov", frames, rotation=90),
    ]
    return [file.read_bytes() for file in files]


def damaged_files(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path]]:
    """Write ``count`` damaged files; yields the kind of damage and the path. The same seed gives the same files."""
    originals = sources(folder)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kind = str(rng.choice(list(DAMAGE)))
        data = bytearray(originals[rng.integers(len(originals))])
        suffix = str(rng.choice([".mp4", ".avi", ".mkv", ".webm", ".ts", ""]))
        path = folder / f"{number:05d}_{kind}{suffix}"
        path.write_bytes(DAMAGE[kind](data, rng, originals))
        yield kind, path


def _flip_bits(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    for at in rng.integers(0, len(data), rng.integers(1, 50)):
        data[at] ^= 1 << rng.integers(8)
    return bytes(data)


def _flip_header(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    """Where the tables are: the first or the last two thousand bytes."""
    start = 0 if rng.random() < 0.5 else max(0, len(data) - 2000)
    for at in start + rng.integers(0, min(2000, len(data)), rng.integers(1, 8)):
        data[min(at, len(data) - 1)] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    return bytes(data)


def _truncate(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    return bytes(data[: rng.integers(0, len(data))])


def _zero_block(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    start, length = rng.integers(len(data)), rng.integers(1, 5000)
    end = min(len(data), start + length)
    data[start:end] = bytes(end - start)
    return bytes(data)


def _noise_block(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    start = rng.integers(len(data))
    end = min(len(data), start + rng.integers(1, 2000))
    data[start:end] = rng.bytes(end - start)
    return bytes(data)


def _swap_header(data: bytearray, rng: np.random.Generator, originals: list[bytes]) -> bytes:
    other, length = originals[rng.integers(len(originals))], rng.integers(8, 3000)
    return other[:length] + bytes(data[length:])


def _drop_block(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    start = rng.integers(len(data))
    del data[start : start + rng.integers(1, 500)]
    return bytes(data)


def _huge_size(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    """Width and height of 128 and 96, wherever they stand as 16 or 32 bits, become tens of thousands."""
    big = int(rng.integers(8_000, 65_535))
    for order in ("big", "little"):
        for size in (2, 4):
            for value in (128, 96):
                data = data.replace(value.to_bytes(size, order), big.to_bytes(size, order))  # type: ignore[arg-type]
    return bytes(data)


def _sound_only(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    return bytes(data).replace(b"vide", b"soun").replace(b"vids", b"auds")


def _as_it_is(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    """Under another suffix."""
    return bytes(data)


def _no_video(data: bytearray, rng: np.random.Generator, _: list[bytes]) -> bytes:
    return [b"", b"\0" * int(rng.integers(1, 5000)), rng.bytes(int(rng.integers(1, 5000))), b"text\n" * 50][
        rng.integers(4)
    ]


DAMAGE = {
    "flip_bits": _flip_bits,
    "flip_header": _flip_header,
    "truncate": _truncate,
    "zero_block": _zero_block,
    "noise_block": _noise_block,
    "swap_header": _swap_header,
    "drop_block": _drop_block,
    "huge_size": _huge_size,
    "sound_only": _sound_only,
    "wrong_suffix": _as_it_is,
    "no_video": _no_video,
}


def read_all(paths: list[Path], backend: str) -> dict[str, str]:
    """Read each file in a child process, a new one after each death or hang.

    Returns:
        what became of each path: ``frames``, ``VideoError ...``, ``died ...``, ``hung``, or another exception.
    """
    results: dict[str, str] = {}
    while len(results) < len(paths):
        left = [str(path) for path in paths if str(path) not in results]
        command = [sys.executable, "-m", "tests.fuzz", "--child", backend]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
        assert child.stdin is not None
        assert child.stdout is not None
        for path in left:
            try:
                child.stdin.write(json.dumps(path) + "\n")
                reply = _line_within(child, SECONDS_PER_FILE)
            except BrokenPipeError:
                reply = ""
            if reply:
                results[path] = json.loads(reply)
                continue
            results[path] = "hung" if reply is None else f"died with code {child.wait()}"
            break
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    return results


def _line_within(child: subprocess.Popen, seconds: float) -> str | None:
    """The child's next line; empty where it has died, None after the time."""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        return child.stdout.readline() if selector.select(seconds) else None  # type: ignore[union-attr]


def _child(backend: str) -> None:
    """Read a path a line from stdin; reply a line each."""
    from gcvideo.errors import VideoError
    from gcvideo.video import open_video

    for line in sys.stdin:
        path = json.loads(line)
        try:
            with open_video(path, backend=backend) as reader:
                rng = np.random.default_rng(len(reader))
                frames = reader.frames(rng.integers(0, len(reader), 8))
                assert frames.shape == (8, reader.height, reader.width, 3)
                assert len(reader.times) == len(reader)
            reply = "frames"
        except VideoError as error:
            reply = f"VideoError {error.reason}" if error.path == path else f"names {error.path}"
        except BaseException as error:
            reply = f"{type(error).__name__}: {error}"
        print(json.dumps(reply), flush=True)


def is_failure(result: str) -> bool:
    """Whether a file ended in anything but frames or a ``VideoError``."""
    return result != "frames" and not result.startswith("VideoError ")


def main() -> int:
    """Make the files, read them, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--child", metavar="BACKEND", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(args.child)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = list(damaged_files(Path(folder), args.count, args.seed))
        start = time.perf_counter()
        results = read_all([path for _, path in files], args.backend)
        seconds = time.perf_counter() - start
    table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    failures = []
    for kind, path in files:
        result = results[str(path)]
        table[kind][result.split()[0]] += 1
        if is_failure(result):
            failures.append(f"{path.name}: {result}")
    for kind, counts in sorted(table.items()):
        print(f"{kind:14}", dict(sorted(counts.items())))
    print(f"{len(files)} files in {seconds:.0f} s with backend {args.backend}: {len(failures)} failures")
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
