"""Videos inside tar shards, each under a path of its own, read from the shard by one system call.

The path ``shards/shard-000003.tar#1536+48211/00000042.mp4`` means the 48211 bytes from byte 1536 of the shard on.
Such paths stand in the index of a folder of shards, and ``open_video`` takes them as it takes files. The header that
tar puts in front of a member is read with it and must agree, so that another shard is never taken for the right one.
"""

import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple

from gcvideo.errors import VideoError

# In a folder of shards: what every shard holds, the journal of their writing, and the table that training reads.
MANIFEST = "shards.json"
JOURNAL = "shards.jsonl"
INDEX = "shards.parquet"

_PATH = re.compile(r"(?P<shard>.+)#(?P<offset>\d{1,18})\+(?P<size>\d{1,18})/(?P<name>[^/]+)", re.DOTALL)


class Member(NamedTuple):
    """Where a video lies in a shard: ``size`` bytes from byte ``offset`` on, under a name."""

    shard: str
    offset: int
    size: int
    name: str

    @property
    def path(self) -> str:
        """The path that ``parse_member`` reads."""
        return f"{self.shard}#{self.offset}+{self.size}/{self.name}"


def parse_member(path: str) -> Member | None:
    """The member that a path means; None for the path of a file."""
    match = _PATH.fullmatch(path)
    if match is None or os.path.lexists(path):
        return None
    return Member(match["shard"], int(match["offset"]), int(match["size"]), match["name"])


@contextmanager
def local_path(path: str) -> Iterator[str]:
    """A path that any decoder of this process can open for as long as the context lasts: of a member, a copy in memory.

    Raises:
        VideoError: the shard does not hold this member.
    """
    member = parse_member(path)
    with in_memory([read_member(member)]) if member else nullcontext(path) as local:
        yield local


@contextmanager
def in_memory(pieces: Iterable[bytes | memoryview]) -> Iterator[str]:
    """A path under which a decoder of this process can open the pieces as one file, for as long as the context lasts.

    decord dies by a segmentation fault on damaged input that it gets as a bytes object, so that it needs a path.
    """
    in_linux = hasattr(os, "memfd_create")
    with open(os.memfd_create("slice.mp4"), "wb") if in_linux else tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.writelines(pieces)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}" if in_linux else str(file.name)


def read_member(member: Member) -> bytes:
    """The bytes of a member.

    Raises:
        VideoError: the shard does not hold it.
    """
    start, size = member.offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE + member.size
    try:
        with open(member.shard, "rb", buffering=0) as shard:
            if start < 0 or start + size > os.fstat(shard.fileno()).st_size:
                raise VideoError(member.path, "lies beyond the end of its shard")
            data = os.pread(shard.fileno(), size, start)
    except OSError as error:
        raise VideoError(member.path, f"its shard cannot be read ({error.strerror})") from None
    with suppress(tarfile.HeaderError):  # its checksum must be right
        info = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        if len(data) == size and info.isreg() and (info.name, info.size) == (member.name, member.size):
            return data[tarfile.BLOCKSIZE :]
    raise VideoError(member.path, "is not at this place of its shard")
