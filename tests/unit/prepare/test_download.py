"""Download of Kinetics, against a server on the loopback interface that cuts, lies and refuses."""

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gcvideo.cli import main
from gcvideo.data.annotations import load_classes, load_records
from gcvideo.errors import ConfigError, DataError
from gcvideo.prepare import download
from gcvideo.prepare.download import BASE, download_kinetics, unpack
from tests.videos import moving_frames, write_video

IDS = ["-abcdefghij", "_bcdefghijk", "cdefghijklm", "defghijklmn"]
HEADER = "label,youtube_id,time_start,time_end,split\n"


class Server(ThreadingHTTPServer):
    """Files by path; ``twist(request, count)`` may do something else for the count-th request of a path and be true."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []  # path and range
        self.twist: Callable[[Any, int], bool] = lambda request, count: False
        self.ranges = True
        self.base = f"http://127.0.0.1:{self.server_port}"

    def bodies(self) -> list[tuple[str, str]]:
        """Requests for tar files, not only for their sizes."""
        return [(path, asked) for path, asked in self.asked if asked.startswith("bytes=")]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "") if self.command == "GET" else "HEAD"
        self.server.asked.append((self.path, asked))
        count = sum(1 for path, other in self.server.asked if path == self.path and other != "HEAD")
        if self.server.twist(self, count):
            return
        if self.path not in self.server.files:
            return self.send_error(404)
        self.send(self.server.files[self.path])

    def send(self, content: bytes, *, until: int | None = None) -> None:
        """A file, or the part of it that was asked for; ``until``: cut the connection there."""
        tag = f'"{hash(content)}"'
        start, status = 0, 200
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match and self.server.ranges and self.headers.get("If-Range", tag) == tag:
            start, status = int(match[1]), 206
        end = min(int(match[2]) + 1, len(content)) if match and match[2] and status == 206 else len(content)
        self.send_response(status)
        self.send_header("ETag", tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start : min(end, until or end)])


def make_tar(*files: tuple[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", moving_frames(8), fps=10).read_bytes()


@pytest.fixture
def server(clip, monkeypatch) -> Iterator[Server]:
    """A small Kinetics-400: two tars and a replacement to train on, one to validate on; one video is missing."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TRIES", 2)
    monkeypatch.setattr(download, "FIRST_WAIT", 0)
    monkeypatch.setattr(download, "MOST_CUTS", 3)
    server = Server()
    other = os.urandom(200_000)  # longer than one block of the network
    rows = "".join(f'"air drumming",{name},3,13,train\n' for name in IDS)
    files = {
        "annotations/train.csv": (HEADER + rows).encode(),
        "annotations/val.csv": (HEADER + f"abseiling,{IDS[0]},3,13,val\n").encode(),
        "train/k400_train_path.txt": f"{BASE}/400/train/part_0.tar.gz\r\n{BASE}/400/train/part%201.tar.gz\n".encode(),
        "val/k400_val_path.txt": f"{BASE}/400/val/part_0.tar.gz\n".encode(),
        "train/part_0.tar.gz": make_tar((f"./{IDS[0]}_000003_000013.mp4", clip), (f"{IDS[1]}_000003_000013.mp4", b"x")),
        "train/part%201.tar.gz": make_tar((f"{IDS[2]}_000003_000013.mp4", clip), ("notes.txt", other), mode="w"),
        "val/part_0.tar.gz": make_tar((f"{IDS[0]}_000003_000013.mp4", clip)),
        "replacement_for_corrupted_k400.tgz": make_tar((f"replacement_for_corrupted_k400/{IDS[1]}.mp4", clip)),
    }
    server.files = {f"/400/{name}": content for name, content in files.items()}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_from_nothing_to_an_index(server, tmp_path, capsys):
    out = tmp_path / "k400"
    command = ["prepare", "download", "kinetics400", str(out), "--base", server.base, "--json", str(tmp_path / "j")]
    assert main(command) == 0
    results = json.loads((tmp_path / "j").read_text())
    counts = {"files": 4, "published": 240_258, "indexed": 3, "missing": 1}
    assert {name: results["train"][name] for name in counts} == counts
    assert results["val"]["indexed"] == 1
    assert results["train"]["fingerprint"] in capsys.readouterr().out
    assert (out / "train.missing.txt").read_text() == f"{IDS[3]}_000003_000013\n"
    assert load_records(out / "train.parquet")[1].path.endswith(
        f"replacement/replacement_for_corrupted_k400/{IDS[1]}.mp4"
    )
    assert not (out / "train.unreadable.txt").exists()
    assert not list((out / "tars").rglob("*.*"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".mp4", ".parquet", ".csv")}
    server.asked.clear()
    assert main(command) == 0
    assert server.bodies() == []
    assert json.loads((tmp_path / "j").read_text()) == results
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_a_lost_video_is_unpacked_again_and_the_index_made_again(server, tmp_path):
    command = ["prepare", "download", "kinetics400", str(tmp_path), "--splits", "val", "--base", server.base]
    assert main([*command, "--keep-tars"]) == 0
    video = tmp_path / "val" / f"{IDS[0]}_000003_000013.mp4"
    video.unlink()
    server.asked.clear()
    made = (tmp_path / "val.parquet").stat().st_mtime_ns
    assert main(command) == 0
    assert video.exists()
    assert server.bodies() == []  # the tar was kept
    assert (tmp_path / "val.parquet").stat().st_mtime_ns > made
    assert not list((tmp_path / "tars").rglob("*.*"))


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_resumed_where_it_was_cut(server, tmp_path, ranges):
    server.ranges = ranges
    cut = "/400/train/part%201.tar.gz"

    def twist(request: Handler, count: int) -> bool:
        if request.path == cut and request.command == "GET" and count == 1:
            request.send(server.files[cut], until=120_000)
            return True
        return False

    server.twist = twist
    assert download_kinetics("kinetics400", tmp_path, splits=["train"], base=server.base) == {"train": 4}
    first, second = (asked for path, asked in server.bodies() if path == cut)
    assert first == "bytes=0-"
    assert 60_000 < int(second.removeprefix("bytes=").removesuffix("-")) <= 120_000  # what the client got of it
    assert (tmp_path / "train" / "notes.txt").stat().st_size == 200_000


@pytest.mark.slow
def test_a_file_that_changed_on_the_server_is_downloaded_again(server, tmp_path):
    options = {"splits": ["val"], "base": server.base}
    download_kinetics("kinetics400", tmp_path, **options)
    name, old = "/400/val/part_0.tar.gz", server.files["/400/val/part_0.tar.gz"]
    server.files[name] = make_tar(("other.mp4", os.urandom(20_000)))
    server.asked.clear()
    download_kinetics("kinetics400", tmp_path, **options)
    assert [asked for _, asked in server.bodies()] == ["bytes=0-"]
    assert "other.mp4" in tree(tmp_path / "val")
    # A part of another version: a longer one is thrown away; a mixture is damaged, found, and downloaded again.
    part = tmp_path / "tars/val/.part_0.tar.gz.part"
    part.write_bytes(server.files[name])
    server.files[name] = old
    download_kinetics("kinetics400", tmp_path, **options)
    part.write_bytes(old[:5000])
    server.files[name] = make_tar(("other.mp4", os.urandom(20_000)))
    with pytest.raises(DataError, match=r"damaged archive .* it was removed; 1 of 1 download jobs failed; the same"):
        download_kinetics("kinetics400", tmp_path, **options)
    download_kinetics("kinetics400", tmp_path, **options)


def test_temporary_errors_are_tried_again_and_others_named(server, tmp_path):
    path = "/400/val/k400_val_path.txt"

    def twist(request: Handler, count: int) -> bool:
        if request.path == path and count < 3:
            request.send_error(503)
            return True
        return False

    server.twist = twist
    assert download_kinetics("kinetics400", tmp_path / "a", splits=["val"], base=server.base) == {"val": 1}

    def refuse(request: Handler, count: int) -> bool:
        if request.path.endswith("part_0.tar.gz"):
            request.send_error(503)
            return True
        return False

    server.twist = refuse
    with pytest.raises(DataError, match=r"val/part_0.tar.gz: 503 .*Service Unavailable"):
        download_kinetics("kinetics400", tmp_path / "b", splits=["val"], base=server.base)
    server.twist = lambda request, count: False
    del server.files["/400/val/part_0.tar.gz"]
    server.asked.clear()
    with pytest.raises(DataError, match=r"val/part_0.tar.gz: 404 .*Not Found"):
        download_kinetics("kinetics400", tmp_path / "b", splits=["val"], base=server.base)
    assert sum(path.endswith("part_0.tar.gz") for path, _ in server.asked) == 1


def test_redirects_are_followed_and_proxies_named(server, tmp_path, monkeypatch):
    def twist(request: Handler, count: int) -> bool:
        if request.path.startswith("/old/"):
            request.send_response(302)
            request.send_header("Location", request.path.removeprefix("/old"))
            request.end_headers()
        return request.path.startswith("/old/")

    server.twist = twist
    download_kinetics("kinetics400", tmp_path, splits=["val"], base=f"{server.base}/old/")
    assert len(tree(tmp_path / "val")) == 1
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    with pytest.raises(DataError, match=r"csv: .*proxy.*refused") as caught:
        download_kinetics("kinetics400", tmp_path / "b", splits=["val"], base=server.base)
    assert "secret" not in str(caught.value)


def test_a_connection_that_is_always_cut_ends_with_one_line(server, tmp_path):
    def twist(request: Handler, count: int) -> bool:
        if request.path.endswith("tar.gz") and request.command == "GET":
            request.send(server.files[request.path], until=30)
            return True
        return False

    server.twist, server.ranges = twist, False
    with pytest.raises(
        DataError,
        match=r"tar.gz: the connection was cut too often, last after 0 of [\d,]+ bytes; 1 of 1 download jobs failed",
    ):
        download_kinetics("kinetics400", tmp_path, splits=["val"], base=server.base)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "val/k400_val_path.txt",
            b"<html>log in</html>",
            "expected addresses of tar files, found '<html>log in</html>'",
        ),
        ("val/k400_val_path.txt", b"../../../etc/passwd", "expected addresses of tar files"),
        ("annotations/val.csv", b"<html>", "expected the columns of Kinetics"),
        ("val/part_0.tar.gz", b"no tar file at all" * 50, r"damaged archive \(.*\); it was removed"),
        (
            "val/part_0.tar.gz",
            make_tar(("x" * 300, b"")),
            r"val/part_0.tar.gz: OSError: File name too long",
        ),
        ("val/part_0.tar.gz", b"", r"part_0.tar.gz: the server tells no size of this file, or that it is empty"),
    ],
)
def test_what_is_not_what_it_should_be_is_named(server, tmp_path, name, content, message):
    server.files[f"/400/{name}"] = content
    with pytest.raises(DataError, match=message) as caught:
        download_kinetics("kinetics400", tmp_path, splits=["val"], base=server.base)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.mp4"))


def test_the_disk_must_be_large_enough(server, tmp_path, monkeypatch):
    size = len(server.files["/400/val/part_0.tar.gz"])
    free = shutil._ntuple_diskusage(0, 0, 2 * size)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    download_kinetics("kinetics400", tmp_path / "a", splits=["val"], base=server.base)
    free = shutil._ntuple_diskusage(0, 0, 2 * size - 1)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"GB are needed and .* GB free; choose another disk"):
        download_kinetics("kinetics400", tmp_path / "b", splits=["val"], base=server.base)
    assert server.bodies() == [("/400/val/part_0.tar.gz", "bytes=0-")]


def test_a_folder_holds_one_data_set(server, tmp_path):
    download_kinetics("kinetics400", tmp_path, splits=["val"], base=server.base)
    with pytest.raises(ConfigError, match="another edition of Kinetics; choose another place"):
        download_kinetics("kinetics600", tmp_path, splits=["val"], base=server.base)
    with pytest.raises(DataError, match=r"ftp://.*: No connection adapters"):
        download_kinetics("kinetics400", tmp_path / "b", base="ftp://127.0.0.1")


def test_kinetics600_has_class_archives_and_annotations_called_txt(server, tmp_path, clip):
    name = f"{IDS[0]}_000003_000013.mp4"
    table = (HEADER + f"abseiling,{IDS[0]},3,13,val\n").encode()
    server.files |= {
        "/600/val/k600_val_path.txt": f"{BASE}/600/val/hugging (not baby).tar.gz\n".encode(),
        "/600/val/hugging%20(not%20baby).tar.gz": make_tar((name, clip)),
        "/600/annotations/val.txt": table,
    }
    assert download_kinetics("kinetics600", tmp_path / "a", splits=["val", "val"], base=server.base) == {"val": 1}
    server.files["/600/test/k600_test_path.txt"] = b""
    server.files["/600/annotations/test.csv"] = table
    assert download_kinetics("kinetics600", tmp_path / "a", splits=["test"], base=server.base) == {"test": 0}
    server.files["/600/annotations/val.txt"] = b"some other form\n"
    server.files["/600/annotations/val.csv"] = table
    assert download_kinetics("kinetics600", tmp_path / "b", splits=["val"], base=server.base) == {"val": 1}
    assert (tmp_path / "b/annotations/val.csv").read_bytes() == table


# --- archives ---


def special(name: str, kind: bytes, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        good = tarfile.TarInfo("good.mp4")
        tar.addfile(good)
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        tar.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "member",
    [
        ("../evil.mp4", tarfile.REGTYPE),
        ("a/../../evil.mp4", tarfile.REGTYPE),
        ("/tmp/evil.mp4", tarfile.REGTYPE),
        ("../evil", tarfile.DIRTYPE),
        ("", tarfile.REGTYPE),
        ("evil", tarfile.SYMTYPE, "/etc"),
        ("evil", tarfile.LNKTYPE, "/etc/passwd"),
        ("evil", tarfile.FIFOTYPE),
        ("evil", tarfile.CHRTYPE),
    ],
    ids=lambda member: f"{member[0]}-{member[1].decode()}",
)
def test_a_malicious_archive_is_refused_whole(tmp_path, member):
    (tmp_path / "evil.tar.gz").write_bytes(special(*member))
    with pytest.raises(DataError, match=r"'.*' is a link, a device or outside; nothing was"):
        unpack(tmp_path / "evil.tar.gz", tmp_path / "folder")
    assert tree(tmp_path) == ["evil.tar.gz"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_damaged_archive_is_found_wherever_the_damage_is(tmp_path, mode):
    whole = make_tar(("a.mp4", os.urandom(3000)), ("b.mp4", os.urandom(3000)), mode=mode)
    path, folder = tmp_path / "a.tar.gz", tmp_path / "folder"
    path.write_bytes(whole)
    assert unpack(path, folder) == {"a.mp4": 3000, "b.mp4": 3000}
    assert path.exists()
    shutil.rmtree(folder)
    damages = [whole[:cut] for cut in (10, 700, 4096, len(whole) // 2, 7000 if mode == "w" else len(whole) - 4)]
    headers = range(0, 4600, 512) if mode == "w" else range(30, len(whole), 500)
    for position in headers if mode == "w:gz" else (3, 3584 + 3):  # contents of a plain tar have no checksum
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        damages.append(bytes(flipped))
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged archive"):
            unpack(path, folder)
        assert not folder.exists()
        assert not path.exists()


# --- kills ---


def parts(folder: Path) -> list[int]:
    """Sizes of the files that are not complete yet."""
    return [path.stat().st_size for path in folder.glob(".*.part")]


@pytest.mark.slow
def test_a_killed_download_loses_nothing(server, tmp_path):
    """SIGKILL in the middle of a file; the next call waits for the orphans and asks for the rest only."""
    cut, content = "/400/train/part%201.tar.gz", server.files["/400/train/part%201.tar.gz"]
    reached, proceed = threading.Event(), threading.Event()

    def twist(request: Handler, count: int) -> bool:
        if request.path != cut or request.command == "HEAD" or count > 1:
            return False
        request.send(content, until=100_000)
        request.wfile.flush()
        reached.set()
        proceed.wait(20)
        request.wfile.write(content[100_000:])
        return True

    server.twist = twist
    options = {"splits": ["train"], "base": server.base, "workers": 1}
    arguments = {"target": download_kinetics, "args": ("kinetics400", tmp_path), "kwargs": options}
    process = multiprocessing.get_context("fork").Process(**arguments)
    process.start()
    assert reached.wait(60)
    journal = tmp_path / "download.jsonl"
    while not journal.exists() or "part_0" not in journal.read_text() or not any(parts(tmp_path / "tars/train")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    proceed.set()
    server.asked.clear()
    server.twist = lambda request, count: False
    assert download_kinetics("kinetics400", tmp_path, splits=["train"], base=server.base) == {"train": 4}
    assert "/400/train/part_0.tar.gz" not in [path for path, _ in server.bodies()]  # was complete before the kill
    assert "bytes=0-" not in [asked for path, asked in server.bodies() if path == cut]
    assert (tmp_path / "train/notes.txt").stat().st_size == 200_000


@pytest.mark.slow
def test_labels_are_in_published_order_unless_the_annotation_has_others(server, tmp_path, capsys):
    command = ["prepare", "download", "kinetics400", "--splits", "val", "--base", server.base]
    assert main([*command, str(tmp_path / "a")]) == 0
    assert load_records(tmp_path / "a/val.parquet").classes == load_classes("kinetics400")
    server.files["/400/annotations/val.csv"] = (HEADER + f'"juggling, badly",{IDS[0]},3,13,val\n').encode()
    assert main([*command, str(tmp_path / "b")]) == 0
    assert load_records(tmp_path / "b/val.parquet").classes == ("juggling, badly",)
    assert "val.csv: 'juggling, badly' is no class of kinetics400" in capsys.readouterr().err
