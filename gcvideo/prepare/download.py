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
import tarfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from gcvideo.errors import DataError
from gcvideo.files import Journal, read_yaml, write_atomically
from gcvideo.prepare.jobs import scan
from gcvideo.video.stream import without_credentials

BASE = "https://s3.amazonaws.com/kinetics"
EDITIONS: dict[str, dict[str, Any]] = read_yaml(__file__, "kinetics.yaml")
REPLACEMENTS = "replacement_for_corrupted_k400.tgz"
TIMEOUT = 60  # seconds without a byte
TRIES, FIRST_WAIT = 6, 1.0  # further tries of a request, and the seconds before them, which double
MOST_CUTS = 20  # of the connection within one file
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # codes of HTTP after which the same request may succeed


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
        ConfigError: the folder holds another edition.
        DataError: the disk is too small, or a file cannot be downloaded or unpacked; the others are then complete.
    """
    (edition, suffixes, _), out = EDITIONS[name].values(), Path(out).expanduser()
    base = f"{base.rstrip('/')}/{edition}"
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "download.jsonl", {"format": 1, "edition": edition})
    journal.require_own("edition of Kinetics")
    urls: dict[str, str] = {}  # "split/name" of a tar file -> its address
    for split in dict.fromkeys(splits):
        _save_annotation(f"{base}/annotations/{split}", suffixes[split], out / f"annotations/{split}.csv")
        urls |= _list_archives(base, edition, split)
    with ThreadPoolExecutor(workers) as pool:
        sizes = dict(zip(urls, pool.map(_size_on_server, urls.values()), strict=True))
    folders = {key: out / key.split("/")[0] / ("replacement" if key.endswith(REPLACEMENTS) else "") for key in urls}
    for key, size in sizes.items():
        files = journal.find(key, size)
        if not files or any(_size(folders[key] / name) != length for name, length in files.items()):
            journal.forget(key)
            (out / f"{key.split('/')[0]}.parquet").unlink(missing_ok=True)
    todo = sorted((size for key, size in sizes.items() if key not in journal), reverse=True)
    need = sum(todo) + sum(todo if keep_tars else todo[:workers])  # videos do not compress
    if need > (free := shutil.disk_usage(out).free):
        raise DataError(f"{out}: {need / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB free; choose another disk")
    parent = os.getpid()

    def fetch(key: str) -> dict[str, int]:
        path = out / "tars" / key
        _download(urls[key], path, sizes[key], parent)
        files = unpack(path, folders[key])
        if not keep_tars:
            path.unlink()
        return files

    options: dict[str, Any] = {"title": "download", "unit": "tars", "must": True, "workers": workers}
    rows = scan(fetch, list(urls), journal=journal, stamp=sizes.__getitem__, **options)
    counts = dict.fromkeys(splits, 0)
    for key, files in rows.items():
        counts[key.split("/")[0]] += 0 if key.endswith(REPLACEMENTS) else len(files)
    return counts


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
            folder.mkdir(parents=True, exist_ok=True)
            tar.extractall(folder, members)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        archive.unlink()
        raise DataError(f"{archive}: damaged archive ({str(error).partition(':')[0]}); it was removed") from None
    return {member.name: member.size for member in members if member.isreg()}


def _save_annotation(url: str, suffixes: Sequence[str], path: Path) -> None:
    """Save the first annotation of these suffixes that is a table of Kinetics, unless there is one."""
    for suffix in suffixes:
        if not path.exists() and b"youtube_id" in (content := _open(url + suffix).content).partition(b"\n")[0]:
            write_atomically(path, content)
    if not path.exists():
        raise DataError(f"{url}{suffixes[-1]}: expected the columns of Kinetics (youtube_id, time_start, ...)")


def _list_archives(base: str, edition: str, split: str) -> dict[str, str]:
    """The addresses of the tar files of a split, by split and name."""
    address, urls = f"{base}/{split}/k{edition}_{split}_path.txt", {}
    lines = _open(address).text.split("\n") + [f"{base}/{REPLACEMENTS}"] * ((edition, split) == ("400", "train"))
    for line in filter(None, map(str.strip, lines)):
        name = PurePosixPath(unquote(urlsplit(line).path)).name
        if not name.endswith((".tar", ".tar.gz", ".tgz")):
            raise DataError(f"{address}: expected addresses of tar files, found {line[:200]!r}")
        urls[f"{split}/{name}"] = urljoin(address, line.replace(f"{BASE}/{edition}", base, 1))
    return urls


def _size_on_server(url: str) -> int:
    size = int(_open(url, "HEAD").headers.get("Content-Length", 0))
    if not size:
        raise DataError(f"{url}: the server tells no size of this file, or that it is empty")
    return size


def _download(url: str, path: Path, size: int, parent: int) -> None:
    """Download a file, or the rest of it. Pieces of different versions of it make a damaged archive, which is found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    for _ in range(MOST_CUTS):
        if _size(path) == size:
            return
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a process of a killed command may live for seconds
            have = end if (end := file.seek(0, os.SEEK_END)) <= size else file.truncate(0)  # of another version
            if have < size:
                with _open(url, Range=f"bytes={have}-") as response, suppress(requests.RequestException):
                    file.truncate(have if response.status_code == requests.codes.partial else 0)
                    for block in response.iter_content(1 << 16):
                        file.write(block)
                        if os.getppid() != parent:  # which was killed
                            os._exit(0)
        if _size(part) == size:
            os.replace(part, path)
    raise DataError(f"{url}: the connection was cut too often, last after {have:,} of {size:,} bytes")


def _open(url: str, method: str = "GET", **headers: str) -> requests.Response:
    """A response, its content not yet read where a range is asked for; what may succeed later is tried again.

    Raises:
        DataError: it fails too often, or for good.
    """
    session = requests.Session()
    tries = Retry(TRIES, backoff_factor=FIRST_WAIT, status_forcelist=TEMPORARY, raise_on_status=False)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=tries))
    session.headers.update({"User-Agent": "gcvideo", "Accept-Encoding": "identity", **headers})
    try:
        response = session.request(method, url, stream="Range" in headers, timeout=TIMEOUT)
        response.raise_for_status()
        return response
    except requests.RequestException as error:
        raise DataError(without_credentials(f"{url}: {error}")) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
