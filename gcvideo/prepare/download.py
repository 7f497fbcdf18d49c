"""Download of Kinetics-400, 600 and 700 from the mirror of the Common Visual Data Foundation (CVDF).

For each split the mirror has a text file that lists tar files, and an annotation. ``kinetics.yaml`` has the sources.
Its Kinetics-700 is the edition of 2020. Videos go into one folder a split, replacements for the corrupted videos of
Kinetics-400 into ``train/replacement``, annotations into ``annotations``: where the configs look. A download that was
interrupted resumes in the middle of a file.
"""

import fcntl
import gzip
import os
import shutil
import ssl
import tarfile
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import Request, getproxies, proxy_bypass, urlopen

import yaml

from gcvideo.console import say
from gcvideo.errors import DataError
from gcvideo.files import hash_text, write_atomically
from gcvideo.journal import Journal
from gcvideo.prepare.jobs import run_jobs
from gcvideo.video.stream import without_credentials

BASE = "https://s3.amazonaws.com/kinetics"
EDITIONS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("kinetics.yaml").read_text("utf-8"))
REPLACEMENTS = "replacement_for_corrupted_k400.tgz"
TIMEOUT = 60  # seconds without a byte
WAITS = (1, 2, 4, 8, 16, 32)  # seconds before each further try
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # codes of HTTP after which the same request may succeed
CUT = (ConnectionError, TimeoutError, HTTPException, ssl.SSLError)


@dataclass(frozen=True)
class Archive:
    """A tar file on the server.

    Attributes:
        key: its name in the journal: split/name.
        url: its address.
        path: where it is kept until it is unpacked.
        folder: for its files.
        size: bytes.
        tag: changes when the file does; "" where the server gives none.
    """

    key: str
    url: str
    path: Path
    folder: Path
    size: int = 0
    tag: str = ""

    @property
    def part(self) -> Path:
        """Where it is downloaded to. Another version of it on the server goes elsewhere."""
        version = hash_text(f"{self.size} {self.tag}")[:8]
        return self.path.with_name(f".{version}.{self.path.name}.part")


def download_kinetics(
    name: str,
    out: str | Path,
    *,
    splits: Sequence[str] = ("train", "val"),
    base: str = BASE,
    keep_tars: bool = False,
    workers: int = 4,
) -> dict[str, int]:
    """Download and unpack splits of Kinetics; what is there already is only checked.

    For each split the annotation is then ``out/annotations/SPLIT.csv`` and the videos lie in ``out/SPLIT``. An index
    ``out/SPLIT.parquet`` of other files is removed.

    Args:
        name: kinetics400, kinetics600 or kinetics700.
        out: the folder of the data set.
        splits: some of train, val and test.
        base: address of a mirror of ``BASE``, with the same paths.
        keep_tars: keep the tar files, in ``out/tars``.
        workers: files to download at a time.

    Returns:
        how many files the tar files of each split have, replacements left out.

    Raises:
        DataError: the folder holds another data set, the disk is too small, or a file cannot be downloaded or unpacked;
            the others are then complete.
    """
    (edition, suffixes, _), out, splits = EDITIONS[name].values(), Path(out).expanduser(), list(dict.fromkeys(splits))
    base = f"{base.rstrip('/')}/{edition}"
    if urlsplit(base).scheme not in ("http", "https"):
        raise DataError(f"--base: expected an address that begins with https:// or http://, not {base}")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".download.lock").open("w") as lock:  # workers inherit it, and may outlive a killed command by seconds
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{out}: another download into this folder is running; waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        journal = Journal(out / "download.jsonl", {"format": 1, "edition": edition})
        if journal.path.exists() and not journal.fits:
            raise DataError(f"{out}: holds another data set ({journal.path.name}); give another folder")
        for split in splits:
            _save_annotation(f"{base}/annotations/{split}", suffixes[split], out / f"annotations/{split}.csv")
        listed = [archive for split in splits for archive in _list_archives(base, edition, split, out)]
        unpacked: dict[Archive, dict[str, int] | None] = {}  # sizes of files by name, None where they are not there
        for _, archive, error in run_jobs(_measure, listed, title="look up", unit="tars", workers=workers):
            if archive is None:
                raise DataError(error)
            unpacked[archive] = _unpacked_files(archive, journal)
            if unpacked[archive] and not keep_tars:
                archive.path.unlink(missing_ok=True)
        todo = [archive for archive, files in unpacked.items() if files is None]
        _require_space(out, todo, 2 if keep_tars else 1, workers)
        for archive in todo:
            (out / f"{archive.key.split('/')[0]}.parquet").unlink(missing_ok=True)
        unpacked |= _fetch(todo, journal, keep_tars, workers)
    counts = [(a.key.split("/")[0], len(files or ())) for a, files in unpacked.items() if a.path.name != REPLACEMENTS]
    return {split: sum(count for owner, count in counts if owner == split) for split in splits}


def _fetch(todo: Sequence[Archive], journal: Journal, keep_tars: bool, workers: int) -> dict[Archive, Any]:
    """Download and unpack archives; each goes into the journal as soon as its files are there."""
    parent = os.getpid()

    def fetch(archive: Archive) -> dict[str, int]:
        _download(archive, parent=parent)
        return unpack(archive.path, archive.folder)

    unpacked, failures = {}, []
    for archive, files, error in run_jobs(fetch, todo, title="download", unit="tars", workers=workers):
        if files is not None:
            unpacked[archive] = files
            journal.add(archive.key, files, archive.size)
            if not keep_tars:
                archive.path.unlink()
        else:
            failures.append(error)
    if failures:
        raise DataError(f"{failures[0]}; {len(failures)} of {len(todo)} tar files failed; the same command resumes")
    return unpacked


def unpack(archive: Path, folder: Path) -> dict[str, int]:
    """Unpack a tar file, compressed or not, after a look at all of it; existing files are replaced.

    Returns:
        sizes in bytes by name, of its files.

    Raises:
        DataError: the archive is damaged and was removed, or holds anything but files and folders with relative names;
            nothing of it is unpacked then.
    """
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            for member in members:
                parts = member.name.split("/")  # the first is empty in an absolute name and in an empty one
                if not parts[0] or ".." in parts or not (member.isreg() or member.isdir()):
                    raise DataError(f"{archive}: {member.name!r} is a link, a device or outside; nothing was unpacked")
                member.mode = 0o755 if member.isdir() else 0o644
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes damage for the end
                raise tarfile.ReadError("it has no end mark")
            while tar.fileobj.read(1 << 20):  # to the checksum of the compressed file
                pass
            if hasattr(tarfile, "data_filter"):  # Python 3.12, and later releases of 3.10 and 3.11
                tar.extraction_filter = tarfile.data_filter
            for parent in {(folder / member.name).parent for member in members}:
                parent.mkdir(parents=True, exist_ok=True)  # tarfile fails where another process makes it just then
            tar.extractall(folder, members)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        archive.unlink()
        raise DataError(f"{archive}: damaged archive ({str(error).partition(':')[0]}); it was removed") from None
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked into {folder} ({error.strerror})") from None
    return {member.name: member.size for member in members if member.isreg()}


def _save_annotation(url: str, suffixes: Sequence[str], path: Path) -> None:
    """Save the first annotation of these suffixes that is a table of Kinetics, unless there is one."""
    for suffix in suffixes:
        if not path.exists() and b"youtube_id" in (content := _get(url + suffix)).partition(b"\n")[0]:
            write_atomically(path, content)
    if not path.exists():
        raise DataError(f"{url}{suffixes[-1]}: expected the columns of Kinetics (youtube_id, time_start, ...)")


def _list_archives(base: str, edition: str, split: str, out: Path) -> list[Archive]:
    """The tar files of a split, without their sizes."""
    address = f"{base}/{split}/k{edition}_{split}_path.txt"
    urls = [line.strip() for line in _get(address).decode(errors="replace").split("\n") if line.strip()]
    urls += [f"{base}/{REPLACEMENTS}"] * ((edition, split) == ("400", "train"))
    archives = {}
    for url in urls:
        name = PurePosixPath(unquote(urlsplit(url).path)).name
        if not name.endswith((".tar", ".tar.gz", ".tgz")):
            raise DataError(f"{address}: expected addresses of tar files, found {url[:200]!r}")
        folder = out / split / "replacement" if name == REPLACEMENTS else out / split
        url = quote(urljoin(address, url.replace(f"{BASE}/{edition}", base, 1)), safe="%/:,()?=&")
        archives[name] = Archive(f"{split}/{name}", url, out / "tars" / split / name, folder)
    return list(archives.values())


def _measure(archive: Archive) -> Archive:
    """The same archive with its size and tag."""
    with _patiently(archive.url, lambda: _open(archive.url, Range="bytes=0-0")) as response:
        headers = response.headers
    size = headers.get("Content-Range", headers.get("Content-Length", "")).rpartition("/")[2]
    if not size.isdecimal() or not int(size):
        raise DataError(f"{archive.url}: the server tells no size of this file, or that it is empty")
    tag = headers.get("ETag", "W/")
    tag = headers.get("Last-Modified", "") if tag.startswith("W/") else tag  # If-Range takes no weak tags
    return replace(archive, size=int(size), tag=tag)


def _unpacked_files(archive: Archive, journal: Journal) -> dict[str, int] | None:
    """Sizes of the files of an archive by name; None where it is not unpacked, or not all of them are there."""
    files = journal.find(archive.key, archive.size)
    return files if files and all(_size(archive.folder / name) == size for name, size in files.items()) else None


def _require_space(out: Path, todo: Sequence[Archive], copies: int, workers: int) -> None:
    """Videos do not compress, so the files of an archive take its size again."""
    sizes = sorted((archive.size for archive in todo), reverse=True)
    need = copies * sum(sizes) - sum(_size(archive.path) + _size(archive.part) for archive in todo)
    need += sum(sizes[:workers]) if copies == 1 else 0
    if need > (free := shutil.disk_usage(out).free):
        raise DataError(f"{out}: {need / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB free; choose another disk")


def _download(archive: Archive, *, parent: int) -> None:
    """Download a file, or the rest of it."""
    if _size(archive.path) == archive.size:
        return
    archive.path.parent.mkdir(parents=True, exist_ok=True)
    for old in set(archive.path.parent.glob(f".*.{archive.path.name}.part")) - {archive.part}:  # it has changed since
        old.unlink()
    while _size(archive.part) < archive.size:
        _patiently(archive.url, lambda: _receive(archive, parent))
    os.replace(archive.part, archive.path)


def _receive(archive: Archive, parent: int) -> None:
    """Append to a file what is missing, until the connection ends."""
    have = _size(archive.part)
    condition = {"If-Range": archive.tag} if archive.tag else {}
    with _open(archive.url, Range=f"bytes={have}-", **condition) as response:
        first, _, total = response.headers.get("Content-Range", f"bytes 0-/{response.length}").partition("/")
        resumed = first.startswith(f"bytes {have}-")
        if total != str(archive.size) or not (resumed or first.startswith("bytes 0-")):
            raise DataError(f"{archive.url}: asked for {have}- of {archive.size}, got {first[6:]} of {total}")
        with archive.part.open("ab" if resumed else "wb") as file, suppress(*CUT):
            while block := response.read1(1 << 20):
                file.write(block)
                if os.getppid() != parent:  # which was killed
                    os._exit(0)
    if (size := _size(archive.part)) <= have:
        raise ConnectionError(f"the connection was cut after {size:,} of {archive.size:,} bytes")


def _get(url: str) -> bytes:
    return _patiently(url, lambda: _open(url).read())


def _open(url: str, **headers: str) -> HTTPResponse:
    return urlopen(Request(url, headers={"User-Agent": "gcvideo", **headers}), timeout=TIMEOUT)


def _patiently(url: str, action: Callable[[], Any]) -> Any:
    """Call until it succeeds; waits grow.

    Raises:
        DataError: it fails too often, or for good.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except HTTPError as error:
            reason = f"HTTP {error.code} {' '.join(str(error.reason).split())}"
            wait = wait if error.code in TEMPORARY else None
        except (URLError, *CUT) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        if wait is None:
            proxy = None if proxy_bypass(urlsplit(url).hostname or "") else getproxies().get(urlsplit(url).scheme)
            raise DataError(without_credentials(f"{url}{f', through the proxy {proxy}' if proxy else ''}: {reason}"))
        time.sleep(wait)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
