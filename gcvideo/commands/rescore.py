"""``gcvideo test --from-predictions FILE``: score a finished test again, without the model and the videos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gcvideo import console
from gcvideo.analysis.scoring import Scoring, mcnemar, score, summary
from gcvideo.commands.accuracies import show
from gcvideo.console import percent, printable
from gcvideo.errors import ConfigError, DataError
from gcvideo.eval.predictions import Predictions
from gcvideo.files import write_json


def rescore(args: argparse.Namespace) -> None:
    """Print and write accuracy by name, per class, confusions, calibration and, with --compare, McNemar's test."""
    if args.checkpoint or args.overrides:
        raise ConfigError("--from-predictions needs neither a checkpoint nor a config: leave them out")
    predictions = Predictions.load(args.from_predictions)
    predictions.ensemble = args.ensemble or predictions.ensemble
    if args.subset:
        predictions = take_subset(predictions, args.subset)
    scoring = score(predictions)
    results: dict[str, Any] = {
        **{name: predictions.info.get(name) for name in ("protocol", "annotation", "fingerprint", "checkpoint")},
        **predictions.accuracy(),
        "ensemble": predictions.ensemble,
        "videos": len(predictions) + len(predictions.failures),
        "answered": len(predictions),
        "failed": len(predictions.failures),
        "views": int(predictions.views.sum()),
        "failures": [failure._asdict() for failure in predictions.failures],
        **summary(scoring),
    }
    if args.compare:
        other = Predictions.load(args.compare)
        other.ensemble = args.ensemble or other.ensemble
        results["mcnemar"] = {"second": str(args.compare), **mcnemar(scoring, score(other))}
    _show(results, scoring)
    if args.json:
        write_json(args.json, results)
    if args.html:
        from gcvideo.report.pages import write_test_report

        write_test_report(args.html, results, predictions)
        console.say(f"report: {args.html}")


def take_subset(predictions: Predictions, path: str) -> Predictions:
    """The videos whose ids a text file lists; an id that was never tested is an error."""
    try:
        wanted = set(Path(path).read_text(encoding="utf-8").splitlines()) - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    known = {*predictions.ids, *(failure.id for failure in predictions.failures)}
    unknown = sorted(wanted - known)
    if unknown:
        raise DataError(f"{path}: {len(unknown)} ids are not among the predictions, for example {unknown[0]!r}")
    if not wanted:
        raise DataError(f"{path}: lists no id")
    chosen = predictions.select([name in wanted for name in predictions.ids])
    chosen.failures = [failure for failure in predictions.failures if failure.id in wanted]
    return chosen


def _show(results: dict[str, Any], scoring: Scoring) -> None:
    show(results)
    rows = [
        [printable(row["class"]), row["videos"], percent(row["top1"]), printable(row["most_taken_for"] or "")]
        for row in sorted(results["per_class"], key=lambda row: row["top1"])
    ]
    console.say()
    console.table(rows, columns=["class", "videos", "top-1", "most often taken for"])
    console.say()
    console.say(f"mean of the classes' top-1: {percent(results['mean_class_top1'])}")
    error = results["calibration"]["expected_calibration_error"]
    console.say(f"expected calibration error: {error:.4f} ({len(scoring.labels)} videos)")
    if "mcnemar" in results:
        test = results["mcnemar"]
        console.say(
            f"against {printable(test['second'])}, {test['videos']} videos in common: "
            f"{percent(test['top1_first'])} and {percent(test['top1_second'])}; only the first is right on "
            f"{test['only_first_right']}, only the second on {test['only_second_right']}; "
            f"McNemar's exact p = {test['p_value']:.4g}"
        )
