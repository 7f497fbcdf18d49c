"""Published networks: a folder, and the Hugging Face Hub, here a server that speaks its file API on the loopback."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import gcvideo
from gcvideo.cli import main
from gcvideo.config import load_config
from gcvideo.errors import CheckpointError, ConfigError
from gcvideo.train.checkpoint import load_checkpoint
from gcvideo.weights.reading import refuse_code
from tests.tiny import CLASSES, tiny_checkpoint, tiny_videos

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(http.server.BaseHTTPRequestHandler):
    """One branch, main, of repositories whose files lie in ``server.repositories``."""

    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def reply(self, value: Any = b"", *, code: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/revision/([^/]+))?", path):
            files = self.server.repositories.get(found[1])
            if files is None or found[1] == "org/private":
                self.reply({"error": "Invalid"}, code=401, X_Error_Code="RepoNotFound")
            elif found[2] not in (None, "main", COMMIT):
                self.reply({"error": "Invalid rev"}, code=404, X_Error_Code="RevisionNotFound")
            else:
                siblings = [{"rfilename": name} for name in files]
                self.reply({"id": found[1], "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/tree/([^/]+)", path):
            files = self.server.repositories[found[1]]
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            self.reply(entries)
        elif found := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/([^/]+)/(.+)", path):
            content = self.server.repositories[found[1]][found[3]]
            self.reply(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self.reply({"error": f"unknown: {path}"}, code=404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer right":
            self.reply({"error": "Invalid username or password."}, code=401)
        elif self.path == "/api/repos/create":
            self.reply({"url": f"{self.server.address}/org/new", "name": "org/new"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
            self.reply({"files": modes})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.repositories[name] = {each["path"]: base64.b64decode(each["content"]) for each in files}
            url = f"{self.server.address}/{name}/commit/{COMMIT}"
            self.reply({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.reply({"valid": True})


class Hub(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was tested, and its folder to publish."""
    folder = tmp_path_factory.mktemp("published")
    tiny_videos(folder, 2)
    checkpoint = tiny_checkpoint(folder)
    (folder / "best.pt").hardlink_to(checkpoint)
    assert main(["test", str(folder / "runs/tiny")]) == 0
    assert main(["export", str(folder / "runs/tiny"), str(folder / "released")]) == 0
    return folder


@pytest.fixture
def server(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    files = {path.name: path.read_bytes() for path in (place / "released").iterdir()}
    found.repositories = {"org/net": files, "org/private": files}
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "right")
    yield found
    found.shutdown()
    found.server_close()


def test_a_folder_is_the_network_without_the_places_of_the_machine(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = place / "video_0.mp4"
    own, released = (gcvideo.load(place / name, precision="fp32", device="cpu") for name in ("runs/tiny", "released"))
    assert released.predict(video) == own.predict(video)
    text = "".join((place / "released" / name).read_text() for name in ("config.yaml", "README.md"))
    assert str(place.parent) not in text.replace(str(place / "released"), "")
    config = load_config(place / "released/config.yaml")
    assert (config.data.val.annotation, config.model) == (None, own.config.model)
    card = (place / "released/README.md").read_text()
    tested = json.loads((place / "runs/tiny/results.json").read_text())
    assert f"| whole videos | {100 * tested['video']['top1']:.2f} % |" in card
    assert tested["fingerprint"] in card
    assert f"Classes: {', '.join(CLASSES)}.\n\n## Accuracy" in card
    assert "\n\n1 epoch, 10 optimizer steps. " in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "gcvideo"
    own.save_pretrained(tmp_path / "tiny")
    arguments = [f"data.val.annotation={place}/val.txt", f"output={place}/runs"]
    assert main(["test", str(tmp_path / "tiny"), *arguments]) == 2, "a run of this name keeps its results"
    assert "set --output DIR" in capsys.readouterr().err
    assert (tmp_path / "tiny/model.safetensors").read_bytes() == (place / "released/model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="is not empty"):
        own.save_pretrained(place / "released")
    model = gcvideo.create_model("slow_r18", width=4, num_classes=4, weights=str(place / "released"))
    stored = load_checkpoint(place / "best.pt")["model"]
    torch.testing.assert_close(model.head.proj.weight, stored["head.proj.weight"])


def test_downloads_once_and_works_offline(place: Path, server: Hub, tmp_path: Path) -> None:
    video, expected = place / "video_0.mp4", gcvideo.load(place / "released", device="cpu")
    for name in ("hf:org/net", "hf:org/net@main"):
        assert gcvideo.load(name, device="cpu").predict(video) == expected.predict(video)
    downloads = [line for line in server.requests if line.startswith("GET") and "/resolve/" in line]
    assert sorted(line.rpartition("/")[2] for line in downloads) == ["config.yaml", "model.safetensors"]
    server.shutdown()
    server.server_close()
    assert gcvideo.load("hf:org/net", device="cpu").predict(video) == expected.predict(video)
    arguments = ["data.val.annotation=" + str(place / "val.txt"), "--output", str(tmp_path / "out")]
    assert main(["test", "hf:org/net", *arguments]) == 0
    with pytest.raises(CheckpointError, match=r"hf:org/other: .*check your internet connection"):
        gcvideo.load("hf:org/other")


def test_one_clear_error(server: Hub, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = server.repositories["org/net"]
    config = yaml.safe_load(files["config.yaml"])
    server.repositories["org/half"] = {"config.yaml": files["config.yaml"]}
    config["model"]["context"]["kind"] = "os:system"
    server.repositories["org/code"] = {**files, "config.yaml": yaml.safe_dump(config).encode()}
    for name, message in (
        ("hf:org/none", "Repository Not Found"),
        ("hf:org/private", "Repository Not Found"),
        ("hf:org/net@v9", "Revision Not Found"),
        ("hf:org/half", "neither checkpoints/best.pt nor checkpoints/last.pt in this folder, nor model.safetensors"),
        ("hf:org/code", "model.context.kind is 'os:system', own code"),
        ("hf:a/b/c", "Repo id must be in the form"),
    ):
        assert main(["predict", str(place / "video_0.mp4"), "--checkpoint", name]) == 2
        error = capsys.readouterr().err
        assert f"{name}: " in error
        assert message in error
        assert error.count("\n") == 1


def test_push(server: Hub, place: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(place / "best.pt"), str(tmp_path / "new"), "--push", "org/new"]
    assert main(command) == 0
    assert COMMIT in capsys.readouterr().out
    assert set(server.repositories["org/new"]) == {"config.yaml", "model.safetensors", "README.md"}
    assert 'gcvideo.load("hf:org/new")' in server.repositories["org/new"]["README.md"].decode()
    assert gcvideo.load("hf:org/new", device="cpu").classes == CLASSES
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert main([*command[:2], str(tmp_path / "other"), *command[3:]]) == 2
    error = capsys.readouterr().err
    assert "--push org/new: " in error
    assert f"the files are complete in {tmp_path}/other" in error


@pytest.mark.parametrize("path", ["my_net:build", "os:system\n", "größe:bauen"])  # Python resolves all of them
def test_own_code_is_refused_however_it_is_written(path: str) -> None:
    with pytest.raises(CheckpointError, match="own code"):
        refuse_code({"model": {"arch": path}}, "best.pt")
    refuse_code({"model": {"weights": "hf:org/net"}, "data": {"train": {"annotation": "s3://b/c.csv"}}}, "best.pt")
