"""The page of ``gcvideo predict --html``: thumbnails, labels, timelines, and where the network looked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gcvideo.analysis import page
from gcvideo.analysis.explain import explain, middle_clip
from gcvideo.analysis.pictures import data_uri, overlay
from gcvideo.engine.predictor import Predictor

# Each video with overlays adds some hundred kilobytes to the page and a forward and a backward pass to the work.
MOST_OVERLAYS = 20


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
    name = page.text(Path(entry["video"]).name if entry["video"] != "-" else "standard input")
    if entry["error"] is not None:
        return f'<section class="card problem"><h2>{name}</h2><p>No answer: {page.text(entry["error"])}</p></section>'
    rows = [{"name": p["label"], "share": p["score"]} for p in entry["predictions"]]
    pictures = page.thumbnails(entry["video"], 8) if Path(entry["video"]).is_file() else []
    parts = [
        f'<h2>{name}</h2><p class="soft">{page.text(entry["video"])}</p>',
        page.strip([(f"{t:.1f} s", uri) for t, uri in pictures], seconds=[t for t, _ in pictures]),
        page.bars(rows),
    ]
    if "timeline" in entry:
        parts.append(_timeline(number, entry))
    if predictor is not None and pictures:
        parts.append(_overlays(number, entry, predictor))
    return f'<section class="card">{"".join(parts)}</section>'


def _timeline(number: int, entry: dict[str, Any]) -> str:
    """Blocks in proportion, a slider over them, and the same as a list for print and screen readers."""
    # In thousandths of the whole: growth factors that sum up to less than 1 would not fill the line.
    shares = [1000 * (s["end"] - s["start"]) / entry["duration"] for s in entry["timeline"]]
    blocks = "".join(
        f'<span style="flex:{share:.3f} 0 0" aria-hidden="true">{i + 1}</span>' for i, share in enumerate(shares)
    )
    rows = [
        [i + 1, f"{s['start']:.1f} s", f"{s['end']:.1f} s", s["label"], page.percent(s["score"])]
        for i, s in enumerate(entry["timeline"])
    ]
    data = {"timeline": entry["timeline"], "windows": entry["windows"]}
    middle = entry["duration"] / 2
    warning = f"<p>Broke off: {page.text(entry['warning'])}</p>" if entry.get("warning") else ""
    return (
        f'<h3>What happens when</h3>{warning}<div class="timeline">{blocks}</div>'
        f'<input type="range" min="0" max="{entry["duration"]:.2f}" step="0.05" value="{middle:.2f}" '
        f'data-timeline="timeline-{number}" aria-label="Moment in the video"><p data-now aria-live="polite"></p>'
        + page.table(["segment", "from", "to", "label", "score"], rows)
        + page.embedded(data, f"timeline-{number}")
    )


def _overlays(number: int, entry: dict[str, Any], predictor: Predictor) -> str:
    """One row of frames a block, one at a time, chosen from a menu; Grad-CAM of the best label first."""
    best = entry["predictions"][0]
    clip = middle_clip(predictor, entry["video"])
    if clip is None:
        return ""
    frames, rows = explain(predictor, clip, best["index"])
    options, panels = [], []
    for name, maps in [*rows, ("the frames alone", None)]:
        shown = frames if maps is None else overlay(frames, maps)
        label = f"Grad-CAM for {best['label']}" if name == "Grad-CAM" else name
        options.append(f"<option>{page.text(label).removeprefix('<bdi>').removesuffix('</bdi>')}</option>")
        pictures = [(f"frame {t + 1}", data_uri(frame, height=112)) for t, frame in enumerate(shown)]
        panels.append(f'<div><p class="printed">{page.text(label)}</p>{page.strip(pictures)}</div>')
    return (
        f'<h3>Where the network looked, in the clip in the middle of the video</h3><div class="controls"><label>Show '
        f'<select data-panels="panels-{number}">{"".join(options)}</select></label></div>'
        f'<div id="panels-{number}">{"".join(panels)}</div><p class="soft">Dark and clear: least. Pale yellow: most. '
        "Each map is stretched to its own range, so brightness does not compare between blocks.</p>"
    )
