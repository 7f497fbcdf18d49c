"""Videos inside tar shards, each under a path of its own, read from the shard by one system call.

The path ``shards/shard-000003.tar#1536+48211/00000042.mp4`` means the 48211 bytes from byte 1536 of the shard on.
Such paths stand in the index of a folder of shards, and ``open_video`` takes them as it takes files. The header that
tar puts in front of a member is read with it and must agree, so that another shard is never taken for the right one.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gcvideo.errors import VideoError
from gcvideo.video.mp4_slice import in_memory

# In a folder of shards: what every shard holds, the journal of their writing, and the table that training reads.
MANIFEST = "shards.json"
JOURNAL = "shards.jsonl"
INDEX = "shards.parquet"

_PATH = re.compile(r"(?P<shard>.+)#(?P<offset>\d{1,18})\+(?P<size>\d{1,18})/(?P<name>[^/]+)", re.DOTALL)
# Linux reads no more than 2 GiB at a time.
_READ_AT_MOST = 1 << 30


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
    if member is None:
        yield path
    else:
        with in_memory(read_member(member)) as copy:
            yield copy


def read_member(member: Member) -> list[memoryview]:
    """The bytes of a member, in pieces.

    Raises:
        VideoError: the shard does not hold it.
    """
    start, end = member.offset - tarfile.BLOCKSIZE, member.offset + member.size
    try:
        file = os.open(member.shard, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise VideoError(member.path, f"its shard cannot be opened ({error.strerror})") from None
    try:
        if start < 0 or end > os.fstat(file).st_size:
            raise VideoError(member.path, "lies beyond the end of its shard")
        places = range(start, end, _READ_AT_MOST)
        pieces = [memoryview(os.pread(file, min(_READ_AT_MOST, end - place), place)) for place in places]
    except OSError as error:
        raise VideoError(member.path, f"its shard cannot be read ({error.strerror})") from None
    finally:
        os.close(file)
    header, pieces[0] = bytes(pieces[0][: tarfile.BLOCKSIZE]), pieces[0][tarfile.BLOCKSIZE :]
    if not _announces(header, member) or sum(map(len, pieces)) != member.size:
        raise VideoError(member.path, "is not at this place of its shard")
    return pieces


def _announces(header: bytes, member: Member) -> bool:
    """Whether a member's header, whose checksum must be right, tells its name and size."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return info.isreg() and (info.name, info.size) == (member.name, member.size)
