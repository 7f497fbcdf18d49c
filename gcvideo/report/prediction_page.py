"""The page of ``gcvideo predict --html``: thumbnails, labels, timelines, and where the network looked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gcvideo.console import clock
from gcvideo.eval.predictor import Predictor
from gcvideo.report import page
from gcvideo.report.explain import FROM_THE_RING, explain, label_in_the_middle, middle_clip
from gcvideo.report.pictures import data_uri, scale_in_css

# Each video with overlays adds some hundred kilobytes to the page and a forward and a backward pass to the work.
MOST_OVERLAYS = 20
LEGEND = (
    f'<p class="soft">least <span class="scale" style="background:linear-gradient(to right,{scale_in_css()})"></span> '
    "most. Each map is stretched to its own range, so colours do not compare between blocks.</p>"
)
RING = '<p class="soft">A non-local block has a map for each place: shown is that of the place in the ring.</p>'


def write_prediction_page(path: str | Path, predictor: Predictor, entries: list[dict[str, Any]]) -> None:
    """Write the page.

    Args:
        entries: as ``gcvideo predict --json`` writes them: ``video``, ``error``, ``predictions``, and maybe
            ``duration``, ``timeline`` and ``windows``.
    """
    answered = sum(entry["error"] is None for entry in entries)
    parts = [f'<p class="soft">{answered} of {len(entries)} videos answered by {page.text(predictor.source)}</p>']
    overlays = 0
    for number, entry in enumerate(entries):
        wants_overlays = entry["error"] is None and overlays < MOST_OVERLAYS
        overlays += wants_overlays
        parts.append(_card(number, entry, predictor if wants_overlays else None))
    if answered > overlays:
        parts.append(f'<p class="soft">Attention is shown for the first {overlays} videos.</p>')
    page.write_page(path, "Predictions", parts)


def _card(number: int, entry: dict[str, Any], predictor: Predictor | None) -> str:
    video = entry["video"]
    name = page.breakable(_name(video))
    if entry["error"] is not None:
        return f'<section class="card problem"><h2>{name}</h2><p>No answer: {page.text(entry["error"])}</p></section>'
    rows = [{"name": p["label"], "share": p["score"]} for p in entry["predictions"]]
    pictures = page.thumbnails(video, 16 if "timeline" in entry else 8) if Path(video).is_file() else []
    parts = [
        f"<h2>{name}</h2>",
        f'<p class="soft">{page.breakable(video)}</p>' if os.sep in video else "",
        page.strip([(clock(t), uri) for t, uri in pictures], seconds=[t for t, _ in pictures]),
        "<h3>Over the whole video, the mean of all windows</h3>" if "timeline" in entry else "",
        page.bars(rows),
    ]
    if "timeline" in entry:
        parts.append(_timeline(number, entry))
    if predictor is not None and pictures:
        parts.append(_overlays(number, entry, predictor))
    return f'<section class="card">{"".join(parts)}</section>'


def _name(video: str) -> str:
    """What stands above the answer of a video, a camera or standard input, as they are given to ``gcvideo predict``."""
    if Path(video).exists():
        return Path(video).name
    return "standard input" if video == "-" else f"camera {video}" if video.isdecimal() else Path(video).name or video


def _timeline(number: int, entry: dict[str, Any]) -> str:
    """Blocks in proportion, a slider over them, and the same as a list for print and screen readers."""
    # In thousandths of the whole: growth factors that sum up to less than 1 would not fill the line.
    shares = [1000 * (s["end"] - s["start"]) / entry["duration"] for s in entry["timeline"]]
    blocks = "".join(
        f'<span style="flex:{share:.3f} 0 0" aria-hidden="true"><b>{i}</b> <i>{page.text(s["label"])}</i></span>'
        for i, (share, s) in enumerate(zip(shares, entry["timeline"], strict=True), start=1)
    )
    rows = [
        [i + 1, clock(s["start"]), clock(s["end"]), s["label"], page.percent(s["score"])]
        for i, s in enumerate(entry["timeline"])
    ]
    data = {"timeline": entry["timeline"], "windows": entry["windows"]}
    middle = entry["duration"] / 2
    warning = f"<p>Broke off: {page.text(entry['warning'])}</p>" if entry.get("warning") else ""
    return (
        f'<h3>What happens when</h3>{warning}<div class="timeline">{blocks}</div>'
        f'<input type="range" min="0" max="{entry["duration"]:.2f}" step="0.05" value="{middle:.2f}" '
        f'data-timeline="timeline-{number}" aria-label="Moment in the video"><p data-now aria-live="polite"></p>'
        + f'<div class="segments">{page.table(["no.", "from", "to", "label", "score"], rows)}</div>'
        + page.embedded(data, f"timeline-{number}")
    )


def _overlays(number: int, entry: dict[str, Any], predictor: Predictor) -> str:
    """One row of frames a block, one at a time, chosen from a menu; Grad-CAM of the best label first."""
    clip = middle_clip(predictor, entry["video"])
    if clip is None:
        return ""
    plain, *rows = explain(predictor, clip, label_in_the_middle(entry))
    options, panels = [], []
    for label, shown in [*rows, ("the frames alone", plain[1])]:
        options.append(f"<option>{page.text(label).removeprefix('<bdi>').removesuffix('</bdi>')}</option>")
        pictures = [(f"frame {t + 1}", data_uri(frame, height=112)) for t, frame in enumerate(shown)]
        note = RING if label.endswith(FROM_THE_RING) else ""
        panels.append(f'<div><p class="printed">{page.text(label)}</p>{page.strip(pictures)}{note}</div>')
    return (
        f'<h3>Where the network looked, in the clip in the middle of the video</h3><div class="controls"><label>Show '
        f'<select data-panels="panels-{number}">{"".join(options)}</select></label></div>'
        f'<div id="panels-{number}">{"".join(panels)}</div>{LEGEND}'
    )
