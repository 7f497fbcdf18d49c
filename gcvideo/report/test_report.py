"""The report of a test as one page: accuracy, classes, confusions, calibration, mistakes, failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcvideo.analysis.scoring import Scoring, calibration, confusion_matrix, per_class, score, worst_pairs
from gcvideo.eval.predictions import Predictions
from gcvideo.report import page

# A matrix of more classes than this is too wide to read: only the most confused ones are shown.
MOST_CLASSES = 24
# How the classes can be sorted: by which value of theirs ("-": the largest first), and what its button says.
SORTS = {"place": "label order", "top": "worst first", "-top": "best first", "count": "rarest first"}


def write_report(path: str | Path, results: dict[str, Any], predictions: Predictions) -> None:
    """Write the page.

    Args:
        results: what ``gcvideo test`` writes to ``results.json``.
        predictions: of the same test.
    """
    page.write_page(path, "Test report", test_parts(results, predictions))


def test_parts(results: dict[str, Any], predictions: Predictions) -> list[str]:
    """What ``write_report`` writes, for a page that says more."""
    facts = f"{results['answered']} of {results['videos']} videos, {results['protocol']}, {results['ensemble']}"
    parts = [f'<p class="soft">{page.text(facts)}</p>', _accuracy(results), *scored_parts(predictions)]
    return [*parts, failures_part(results["failures"]), _facts(results)]


def scored_parts(predictions: Predictions) -> list[str]:
    """Classes, confusions, calibration and mistakes."""
    if not (predictions.labels >= 0).any():
        return ["<p>No video has a label, so there is nothing to score.</p>"]
    scoring = score(predictions)
    return [_classes(scoring), _confusion(scoring), _calibration(scoring), _mistakes(scoring)]


def _accuracy(results: dict[str, Any]) -> str:
    explained = {
        "video": "of videos, their views ensembled: the figure that papers quote",
        "clip": "of views, each on its own",
        "video_of_all": "of videos, those that could not be read counted as wrong",
    }
    figures = []
    for name, meaning in explained.items():
        if name == "video_of_all" and not results["failed"]:
            continue
        for k in ("top1", "top5") if name in results else ():
            title = f"{name.split('_')[0]} top-{k[3:]}"
            share = page.percent(results[name][k], 2)
            figures.append(f'<div>{title}</div><div class="figure">{share}</div><div class="soft">{meaning}</div>')
    return page.cards(figures)


def _classes(scoring: Scoring) -> str:
    rows = []
    for place, row in enumerate(per_class(scoring)):
        taken_for = f", most often taken for {page.text(row['most_taken_for'])}" if row["most_taken_for"] else ""
        videos = f"{row['videos']} video{'s' * (row['videos'] != 1)}"
        rows.append(
            {
                "name": row["class"],
                "share": row["top1"],
                "note": f"{videos}, top-5 {page.percent(row['top5'])}{taken_for}",
                "sort": {"place": place, "top": f"{row['top1']:.6f}", "count": row["videos"]},
            }
        )
    buttons = "".join(
        f'<button type="button" data-key="{key}" aria-pressed="{"true" if key == "place" else "false"}">{name}</button>'
        for key, name in SORTS.items()
    )
    search = '<input type="search" placeholder="Find a class" aria-label="Find a class">' if len(rows) > 12 else ""
    return (
        f'<h2>Classes</h2><div class="controls" data-sorts="classes" role="group" aria-label="Sort the classes">'
        f"Sort: {buttons}{search}</div>" + page.bars(rows, list_id="classes")
    )


def _confusion(scoring: Scoring) -> str:
    confusion = confusion_matrix(scoring)
    wrong = confusion - np.diag(np.diag(confusion))
    occurs = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    involved = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:MOST_CLASSES]
    chosen = np.sort(involved) if len(occurs) > MOST_CLASSES else occurs
    names = [page.text(scoring.classes[k]) for k in chosen]
    head = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    body = []
    for right, name in zip(chosen, names, strict=True):
        total = max(1, int(confusion[right].sum()))
        cells = "".join(_cell(int(confusion[right, k]), total, diagonal=bool(k == right)) for k in chosen)
        body.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    kept = f" The {len(chosen)} most confused of {len(occurs)} classes." if len(chosen) < len(occurs) else ""
    pairs = [[p["class"], p["taken_for"], p["videos"], p["of"]] for p in worst_pairs(scoring)]
    worst = page.table(["class", "taken for", "videos", "of"], pairs) if pairs else "<p>No mistake at all.</p>"
    return (
        f'<h2>Confusions</h2><p class="soft">Rows: the right class. Columns: the answer. Framed: right. The stronger '
        f'the colour, the larger its share of the row.{kept}</p><div class="beside"><div class="scroll">'
        f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f"<div><h3>The worst pairs</h3>{worst}</div></div>"
    )


def _cell(count: int, total: int, *, diagonal: bool) -> str:
    # The shade goes no deeper than half, so that the number stays readable in any colours.
    shade = f' style="background:rgba(var(--shade),{0.5 * count / total:.3f})"' if count else ""
    return f"<td{shade}{' class=diagonal' if diagonal else ''}>{count or ''}</td>"


def _calibration(scoring: Scoring) -> str:
    found = calibration(scoring)
    size, left, bottom = 260, 46, 34
    marks = []
    for row in found["bins"]:
        x, width = left + size * row["from"], size * (row["to"] - row["from"]) - 2
        height = size * row["accuracy"]
        about = f"confidence {row['confidence']:.2f}, accuracy {row['accuracy']:.2f}, {row['videos']} videos"
        marks.append(
            f'<rect x="{x + 1:.1f}" y="{size - height:.1f}" width="{width:.1f}" height="{max(height, 1):.1f}" '
            f'fill="var(--bar)"><title>{about}</title></rect>'
        )
    ticks = "".join(
        f'<text x="{left + size * v}" y="{size + 16}" text-anchor="middle">{v:g}</text>'
        f'<text x="{left - 6}" y="{size - size * v + 4}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    error = found["expected_calibration_error"]
    drawing = (
        f'<svg viewBox="0 -8 {left + size + 8} {size + bottom + 10}" role="img" style="max-width:24rem;width:100%" '
        f'aria-label="Accuracy by confidence" font-size="12" fill="currentColor">'
        f'<rect x="{left}" y="0" width="{size}" height="{size}" fill="none" stroke="var(--line)"/>{"".join(marks)}'
        f'<line x1="{left}" y1="{size}" x2="{left + size}" y2="0" stroke="currentColor" stroke-dasharray="5 4"/>{ticks}'
        f'<text x="{left + size / 2}" y="{size + 30}" text-anchor="middle">confidence</text>'
        f'<text transform="translate(12 {size / 2}) rotate(-90)" text-anchor="middle">accuracy</text></svg>'
    )
    rows = [
        [f"{r['from']:.2f} to {r['to']:.2f}", r["videos"], f"{r['confidence']:.3f}", f"{r['accuracy']:.3f}"]
        for r in found["bins"]
    ]
    return (
        f'<h2>Calibration</h2><p>Expected calibration error <b>{error:.4f}</b>. <span class="soft">Bars on the dashed '
        f"line mean that a confidence of 0.8 is right 8 times in 10.</span></p>{drawing}<details><summary>As a table"
        f"</summary>{page.table(['confidence', 'videos', 'mean confidence', 'accuracy'], rows)}</details>"
    )


def _mistakes(scoring: Scoring, count: int = 12) -> str:
    confidence = scoring.probabilities.max(axis=1)
    wrong = np.flatnonzero(~scoring.right)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    shown = []
    for i in order:
        path = scoring.predictions.paths[i] if scoring.predictions.paths else ""
        pictures = page.thumbnails(path, 1) if path else []
        picture = f'<div class="thumb"><img src="{pictures[0][1]}" alt=""></div>' if pictures else ""
        shown.append(
            f"{picture}<h3>{page.breakable(scoring.predictions.ids[i])}</h3>"
            f"<div>is <b>{page.text(scoring.classes[scoring.labels[i]])}</b> "
            f'<span class="whole">(rank {scoring.ranks[i] + 1})</span></div>'
            f"<div>taken for <b>{page.text(scoring.classes[scoring.predicted[i]])}</b> "
            f'<span class="whole">({page.percent(float(confidence[i]))})</span></div>'
        )
    if not shown:
        return "<h2>Most confident mistakes</h2><p>There are none.</p>"
    meaning = "The wrong answers that the network was surest of. Rank: the place of the right class in its answer."
    return f'<h2>Most confident mistakes</h2><p class="soft">{meaning}</p>{page.cards(shown)}'


def failures_part(failures: Sequence[dict[str, Any]]) -> str:
    """The videos that could not be read: ``id``, ``path`` and ``reason`` of each."""
    if not failures:
        return "<h2>Failures</h2><p>Every video could be read.</p>"
    rows = [[failure["id"], failure["path"], failure["reason"]] for failure in failures]
    return f"<h2>Failures ({len(rows)})</h2>" + page.table(["id", "file", "reason"], rows)


def _facts(results: dict[str, Any]) -> str:
    """What exactly was tested, so that the figures can be compared with others."""
    names = ("annotation", "fingerprint", "train_fingerprint", "checkpoint", "precision", "processes", "views")
    rows = [[name, _plain(results[name])] for name in names if results.get(name) is not None]
    config = config_part(results["config"]) if "config" in results else ""
    return f"<h2>What was tested</h2>{page.table(['what', 'value'], rows)}{config}"


def config_part(config: dict[str, Any]) -> str:
    """Every key of a config, folded away."""
    rows = [[key, _plain(value)] for key, value in _leaves(config)]
    return f"<details><summary>The whole config</summary>{page.table(['key', 'value'], rows)}</details>"


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        nested = isinstance(value, dict) and bool(value)
        found += _leaves(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return found


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return value if isinstance(value, str) else json.dumps(value)
