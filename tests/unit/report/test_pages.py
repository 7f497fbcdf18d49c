"""Pages of tests and predictions: escaped, self-contained, and working in a browser."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import torch

from gcvideo.commands.predict import timeline_row
from gcvideo.data.records import Failure
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.predict.predictor import load
from gcvideo.report import page
from gcvideo.report.maps import MIDDLE, Explanation, Layer
from gcvideo.report.page import write_page
from gcvideo.report.pages import maps_for_page, score_for_page, write_prediction_page, write_test_report
from tests.browser import visit
from tests.predictions import random_scores
from tests.tiny import tiny_checkpoint, tiny_videos

EVIL = ["<script>document.title='owned'</script>", "</bdi></script><img src=x onerror=\"document.title='owned'\">"]
CLASSES = [*EVIL, 'quote" onmouseover="x', "new\nline", "\u202ertl", "ordinary"]


def predictions(count: int = 60, *, seed: int = 0, skill: float = 1.5) -> Predictions:
    failures = [Failure("bad", EVIL[1] + ".mp4", EVIL[0])]
    found = random_scores(CLASSES, count=count, seed=seed, skill=skill, suffix=f" {EVIL[0]}", failures=failures)
    found.paths = [f"/nowhere/{i}.mp4" for i in range(count)]
    return found


def results(found: Predictions) -> dict[str, Any]:
    return {
        "protocol": "10 clips x 3 crops of 256",
        **found.accuracy(),
        "ensemble": "softmax",
        "videos": len(found) + 1,
        "answered": len(found),
        "failed": 1,
        "failures": [failure._asdict() for failure in found.failures],
        "fingerprint": "abc",
        "config": {"name": EVIL[0], "data": {"crop": 224}},
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    found = predictions()
    write_test_report(path, results(found), found)
    return path


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    video, _ = tiny_videos(folder, 2)
    evil = video.rename(folder / ("x" + EVIL[0].replace("/", "") + ".mp4"))
    predictor = load(tiny_checkpoint(folder), device="cpu")
    predictor.classes = CLASSES[:4]
    found = predictor.timeline(evil, step=0.1, smooth=0, min_length=0)
    entries = [
        {"video": str(evil), "error": None, **timeline_row(predictor, found, 3)},
        {"video": str(folder / "video_1.mp4"), "error": None, "predictions": []},
        {"video": EVIL[1], "error": EVIL[0], "predictions": []},
    ]
    entries[1]["predictions"] = entries[0]["predictions"]
    write_prediction_page(folder / "page.html", predictor, entries)
    return folder / "page.html"


class Elements(html.parser.HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("name", ["report", "predicted"])
def test_nothing_from_outside_becomes_markup(name: str, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(name).read_text(encoding="utf-8")
    elements = Elements(content).found
    handlers = {key for _, attributes in elements for key in attributes if key.startswith("on")}
    assert not handlers
    scripts = [attributes for tag, attributes in elements if tag == "script"]
    assert [s for s in scripts if s.get("type") != "application/json"] == [{}], "one script, our own"
    sources = {a["src"].partition(",")[0] for _, a in elements if a.get("src")}  # type: ignore[union-attr]
    assert sources <= {"data:image/jpeg;base64"}
    links = {(a.get("href") or "") for _, a in elements if "href" in a}
    assert {link for link in links if not link.startswith("#")} == {"data:,"}  # "#": parts of a plot
    assert "\u202e" not in content
    assert "http://" not in content.replace("http://www.w3.org", "")
    assert "https://" not in content


@pytest.mark.parametrize("name", ["report", "predicted"])
def test_every_picture_has_a_description_and_every_control_a_name(name: str, request: pytest.FixtureRequest) -> None:
    elements = Elements(request.getfixturevalue(name).read_text(encoding="utf-8")).found
    for tag, attributes in elements:
        if tag == "img":
            assert "alt" in attributes
        if tag == "input":
            assert attributes.get("aria-label")
        if attributes.get("role") == "img":
            assert attributes.get("aria-label")


def test_an_unlabelled_test_has_a_report_too(tmp_path: Path) -> None:
    found = predictions(3)
    found.labels[:] = -1
    write_test_report(tmp_path / "report.html", results(found), found)
    assert "no accuracy" in (tmp_path / "report.html").read_text()


def test_confidence_stands_against_accuracy() -> None:
    scored = score_for_page(predictions())
    assert scored is not None
    bins = [(row["confidence"], row["accuracy"]) for row in scored["calibration"]["bins"]]
    videos, ideal = (container[0].get_xydata() for container in scored["reliability"].axes[0].containers)
    np.testing.assert_allclose(videos, bins)
    assert ideal.tolist() == [[0, 0], [1, 1]]


def test_many_classes_show_the_most_confused_ones(tmp_path: Path) -> None:
    videos = [
        VideoScores(i, str(i), i % 60, 1, 1, 1, *[np.eye(60, dtype=np.float32)[(i + i % 3) % 60]] * 3)
        for i in range(180)
    ]
    found = Predictions.collect(videos)
    write_test_report(tmp_path / "report.html", results(found), found)
    content = (tmp_path / "report.html").read_text()
    assert "The 24 most confused of 60 classes" in content
    assert content.count('<th scope="row">') == 24


def render_parts(source: str, **values: object) -> str:
    """A template of the test's own, with the macros of the pages."""
    template = '{% from "parts.html.j2" import table %}' + source
    return page.ENVIRONMENT.from_string(template).render(**values)


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    content = render_parts(
        "{{ table(rows) }}",
        rows=[
            {"n": "-3", "a_share": "0.5 %", "version": "0.29.2", "mixed": "1"},
            {"n": "12", "version": "2.1.0", "mixed": "a"},
        ],
    )
    assert re.findall(r'<t[hd][^>]*?( class="count")?><bdi>([^<]*)', content) == [
        (' class="count"', "n"),
        (' class="count"', "a share"),
        ("", "version"),
        ("", "mixed"),
        (' class="count"', "-3"),
        (' class="count"', "0.5 %"),
        ("", "0.29.2"),
        ("", "1"),
        (' class="count"', "12"),
        (' class="count"', "–"),
        ("", "2.1.0"),
        ("", "a"),
    ]


def test_titles_and_captions_are_text_and_the_policy_lets_nothing_else_run() -> None:
    content = page.render("base.html.j2", title=f"</title>{EVIL[0]}\u202e")
    content += page.ENVIRONMENT.from_string('<img src="data:," alt="{{ name }}">').render(name='" onerror="x\n')
    elements = Elements(content).found
    assert [attributes for tag, attributes in elements if tag == "script"] == [{}]
    assert [attributes for tag, attributes in elements if tag == "img"] == [{"src": "data:,", "alt": '" onerror="x\\n'}]
    assert "\u202e" not in content
    (policy,) = [a["content"] for _, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="title"):
        page.render("base.html.j2")


def test_data_for_the_script_cannot_end_its_element() -> None:
    block = render_parts("<script>{{ data|tojson }}</script>", data={"label": "</script><b>"})
    assert block.count("</script>") == 1
    assert json.loads(re.findall(r">(.*)</script>", block)[0]) == {"label": "</script><b>"}


def outcome(dom: str) -> dict[str, Any]:
    return json.loads(html.unescape(re.findall(r'data-outcome="([^"]*)"', dom)[0]))


@pytest.mark.slow
def test_a_fault_would_be_found(report: Path, tmp_path: Path) -> None:
    _, console = visit(report, tmp_path, "nothing.at.all()")
    assert len(console) == 1


@pytest.mark.parametrize("name", ["report", "predicted"])
@pytest.mark.slow
def test_the_browser_finds_no_fault(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dom, console = visit(request.getfixturevalue(name), tmp_path)
    assert console == []
    assert "<title>owned" not in dom


@pytest.mark.parametrize("name", ["report", "predicted"])
@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    script = """
      const page = document.documentElement;
      parent.postMessage(JSON.stringify({width: page.clientWidth, content: page.scrollWidth}), "*");
    """
    found = outcome(visit(request.getfixturevalue(name), tmp_path, script, width=390)[0])
    assert 350 < found["content"] == found["width"] <= 390  # less where a scroll bar takes some


@pytest.mark.slow
def test_the_report_sorts_its_classes(report: Path, tmp_path: Path) -> None:
    script = """
      const tops = () => [...document.querySelectorAll("#classes li")].map((item) => Number(item.dataset.top));
      const before = tops();
      document.querySelector("button[data-key=top]").click();
      const sorted = tops();
      const pressed = document.querySelector("button[aria-pressed=true]").dataset.key;
      document.querySelector("button[data-key='-top']").click();
      const reversed = tops();
      document.querySelector("button[data-key=place]").click();
      document.body.dataset.outcome = JSON.stringify({before, sorted, reversed, pressed, after: tops(),
        title: document.title, wide: document.documentElement.scrollWidth > document.documentElement.clientWidth});
    """
    found = outcome(visit(report, tmp_path, script)[0])
    assert found["sorted"] == sorted(found["before"]) != found["before"]
    assert found["reversed"] == sorted(found["before"], reverse=True)
    assert found["pressed"] == "top"
    assert found["after"] == found["before"]
    assert found["title"] == "Test report"
    assert not found["wide"], "the page must not scroll sideways"


@pytest.mark.slow
def test_a_long_list_of_classes_is_searched(tmp_path: Path) -> None:
    videos = [VideoScores(i, str(i), i, 1, 1, 1, *[np.eye(20, dtype=np.float32)[i]] * 3) for i in range(20)]
    found = Predictions.collect(videos)
    found.classes = [f"Class {i}" for i in range(20)]
    write_test_report(tmp_path / "report.html", results(found), found)
    script = """
      const box = document.querySelector("input[type=search]");
      box.value = "class 1";
      box.dispatchEvent(new Event("input"));
      document.body.dataset.outcome = JSON.stringify([...document.querySelectorAll("#classes li:not([hidden])")].map(
        (item) => item.firstChild.textContent));
    """
    names = outcome(visit(tmp_path / "report.html", tmp_path / "profile", script)[0])
    assert names == ["Class 1", *(f"Class {i}" for i in range(10, 20))]


@pytest.mark.slow
def test_the_page_of_predictions_scrubs_and_switches(predicted: Path, tmp_path: Path) -> None:
    script = """
      const slider = document.querySelector("input[type=range]");
      const said = [];
      for (const value of [0, slider.max]) {
        slider.value = value;
        slider.dispatchEvent(new Event("input"));
        const blocks = [...document.querySelectorAll(".timeline span")];
        said.push([document.querySelector("[data-now]").textContent, blocks.findIndex((b) => b.className === "now"),
          blocks.length]);
      }
      document.querySelectorAll(".timeline span")[1].click();
      const clicked = [Number(slider.value), document.querySelectorAll(".strip figure.now").length];
      const rows = [...document.querySelectorAll(".segments tbody tr")];
      rows[2].click();
      const row = [Number(slider.value), rows.findIndex((r) => r.className === "now"), rows.length];
      const line = document.querySelector(".timeline");
      const filled = line.lastChild.getBoundingClientRect().right / line.getBoundingClientRect().right;
      const box = document.querySelector("[data-looks]");
      const drawn = () => [...box.querySelectorAll("canvas")].map((canvas) => canvas.toDataURL());
      const strength = box.querySelector("[data-strength]");
      const laid = (value) => { strength.value = value; strength.dispatchEvent(new Event("input")); return drawn(); };
      const maps = [...box.querySelectorAll("h3")].map((heading) => heading.textContent);
      addEventListener("load", () => {
        document.body.dataset.outcome = JSON.stringify({said, clicked, row, filled, bare: new Set(laid(0)).size,
          covered: new Set(laid(1)).size, pad: box.querySelectorAll("[data-pad]").length, title: document.title, maps});
      });
    """
    found = outcome(visit(predicted, tmp_path, script)[0])
    (start, at_start, _), (end, at_end, blocks) = found["said"]
    assert re.match(r"0:00\.0, segment 1 \(.*\)\. The window there says: .* \d+\.\d %", start)
    assert start != end
    assert (at_start, at_end) == (0, blocks - 1)
    assert found["clicked"][0] > 0
    assert found["clicked"][1] == 1
    assert found["row"][0] > found["clicked"][0]
    assert found["row"][1:] == [2, blocks], "the list shows the segment under the slider"
    assert found["filled"] == pytest.approx(1, abs=0.01), "the blocks fill the line, also for less than a second"
    assert found["maps"][0] == "The frames alone"
    assert found["maps"][1].startswith("Grad-CAM for ")
    assert found["maps"][2:] == ["attention of res3.0", "attention of res3.1"]
    assert found["bare"] == 4, "at strength 0 all rows are the 4 frames"
    assert found["covered"] >= 4 + 4, "two blocks, each with a map of its own"
    assert found["pad"] == 0, "one map for all queries: no query to move"
    assert found["title"] == "Predictions"


@pytest.mark.slow
def test_the_page_of_maps_moves_one_query_over_all_networks(tmp_path: Path) -> None:
    """Of 64 queries only that of the last frame, first row and last column looks anywhere: late, and to the right."""
    frames, maps = np.zeros((4, 32, 32, 3), np.uint8), torch.zeros(1 + 4**3, 2, 2, 2)
    maps[1 + (3 * 4 + 0) * 4 + 3, 1, :, 1] = 1
    pairwise = [Layer(EVIL[0], maps, by_query=True), Layer("mean", torch.ones(1, 2, 2, 2))]
    explained = [
        (EVIL[1], Explanation(frames, pairwise, MIDDLE, (4, 4, 4))),
        ("gc", Explanation(frames, [Layer("shared", torch.ones(1, 2, 2, 2))], MIDDLE, None)),
    ]
    entry = {"video": EVIL[0], "predictions": [{"label": EVIL[1], "index": 0, "score": 1.0}]}
    networks = [(name, maps_for_page(explanation)) for name, explanation in explained]
    write_page(tmp_path / "maps.html", "maps.html.j2", title="Where the network looked", entry=entry, networks=networks)
    script = """
      const light = (row) => [...row.querySelectorAll("canvas")].map((canvas) => {
        const pixel = (x) => canvas.getContext("2d").getImageData(x * canvas.width, canvas.height / 2, 1, 1).data;
        return [0.1, 0.9].map((x) => Math.round(pixel(x).slice(0, 3).reduce((a, b) => a + b) / 100));
      });
      const lights = () => [...document.querySelectorAll(".frames:has(canvas)")].map(light);
      const rings = () => [...document.querySelectorAll(".frames i:not([hidden])")].map((ring) =>
        [[...ring.closest(".frames").children].indexOf(ring.closest("figure")), ring.style.left, ring.style.top]);
      addEventListener("load", () => {
        const before = [lights(), rings()];
        const last = document.querySelectorAll("[data-pad] img")[3];
        const { left, top, width, height } = last.parentElement.getBoundingClientRect();
        const there = { bubbles: true, clientX: left + 0.9 * width, clientY: top + 0.2 * height };
        last.dispatchEvent(new PointerEvent("pointermove", there));
        const after = [lights(), rings()];
        document.querySelector("[data-pad]").dispatchEvent(new KeyboardEvent("keydown", { key: "PageUp" }));
        document.body.dataset.outcome = JSON.stringify({ before, after, later: lights(),
          said: document.querySelector("[data-now]").textContent, title: document.title });
      });
    """
    page, said = visit(tmp_path / "maps.html", tmp_path / "profile", script)
    found = outcome(page)
    dark, lit, right = [[0, 0]] * 4, found["before"][0][1], found["after"][0][0]
    assert lit == [[lit[0][0]] * 2] * 4
    assert lit[0][0] > 3
    assert found["before"] == [[dark, lit, lit], [[2, "50%", "50%"]] * 2]
    assert found["after"] == [[right, lit, lit], [[3, "90%", "20%"]] * 2]
    assert right == [[0, 0], [0, 0], [0, lit[0][0]], [0, lit[0][0]]], "its second half in time, its right half in space"
    assert found["later"] == [dark, lit, lit]
    assert found["said"] == "Query: frame 3 of 4, 20 % down, 90 % across"
    assert found["title"] == "Where the network looked"
    assert all("getImageData" in line for line in said), "the browser's advice about this test's reading alone"
    assert [a for tag, a in Elements((tmp_path / "maps.html").read_text()).found if tag == "script"][-1] == {}
