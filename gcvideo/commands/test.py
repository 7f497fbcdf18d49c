"""``gcvideo test CHECKPOINT [CONFIG] [key=value ...]``: multi-view test; or re-score the predictions of one."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcvideo import console, distributed
from gcvideo.console import percent, printable
from gcvideo.errors import ConfigError, DataError
from gcvideo.files import write_json

if TYPE_CHECKING:
    from gcvideo.eval.predictions import Predictions


MEASURES = {"top1": "top-1", "top5": "top-5", "mAP": "mAP", "chance": "mAP by chance"}
FIGURES = ("ap", "threshold", "precision", "recall", "f1")  # of each class, where videos have several labels


def run(args: argparse.Namespace) -> int:
    """Test, or re-score; prints tables and writes the results."""
    if [bool(args.checkpoint), bool(args.from_predictions), bool(args.mean)].count(True) != 1:
        raise ConfigError("give either a checkpoint, or --from-predictions FILE, or --mean RUN RUN ...")
    if args.mean:
        results = mean_of_tests(args.mean)
        if args.json:
            write_json(args.json, results)
        return 0
    for option in ("ensemble", "subset", "compare", "weights"):
        if getattr(args, option) and not args.from_predictions:
            raise ConfigError(f"--{option} re-scores a predictions.npz: give one with --from-predictions FILE")
    results, predictions = (rescore if args.from_predictions else _test)(args)
    if distributed.is_main():
        _show(results)
        if args.from_predictions:
            _show_classes(results)
        if args.json:
            write_json(args.json, results)
        if args.html:
            from gcvideo.report.pages import write_test_report

            write_test_report(args.html, results, predictions)
            console.say(f"report: {args.html}")
    return 0 if results["answered"] else 2


def mean_of_tests(runs: list[str]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of the video accuracies of several tests, which are printed."""
    files = [str(Path(run) / "results.json" if Path(run).is_dir() else run) for run in runs]
    tests: dict[str, dict[str, Any]] = {}
    protocol, tops = "", list[str]()
    for file in files:
        try:
            test = json.loads(Path(file).read_text(encoding="utf-8"))
            tests[file] = {name: test[name] for name in ("annotation", "videos", "failed")}
            tops = tops or [top for top in MEASURES if top in test["video"]]
            tests[file] |= {top: test["video"][top] for top in tops}
            own = f"{test['protocol']}, {test['ensemble']}"
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{file}: holds no results of a test; run gcvideo test on this run first") from None
        if own != (protocol := protocol or own):
            raise DataError(f"{file}: was tested by {own}, but {files[0]} by {protocol}; test both in one way")
    if len(tests) < max(2, len(files)):
        raise ConfigError("--mean: give at least two runs, each once")
    values = {top: [test[top] for test in tests.values()] for top in tops}
    mean, sd = ({top: f(v) for top, v in values.items()} for f in (statistics.fmean, statistics.stdev))
    rows = [[test[name] for name in ("annotation", "videos", "failed", *values)] for test in tests.values()]
    rows += [["mean", "", "", *mean.values()], ["standard deviation", "", "", *sd.values()]]
    rows = [[*row[:3], *map(percent, row[3:])] for row in rows]
    console.table(
        rows, columns=["test on", "videos", "unreadable", *(f"video {MEASURES[top]}" for top in tops)], title=protocol
    )
    return {"protocol": protocol, "tests": tests, "mean": mean, "sd": sd}


def _test(args: argparse.Namespace) -> tuple[dict[str, Any], Predictions]:
    from gcvideo.eval.test_run import run_test
    from gcvideo.eval.trained import load_trained

    network = load_trained(args.checkpoint, overrides=args.overrides, engine="onnxruntime")
    output = Path(args.output).expanduser() if args.output else network.run_folder
    if not args.output and network.path.parent.name != "checkpoints" and (output / "checkpoints").is_dir():
        raise ConfigError(f"{output}: is a run, and {args.checkpoint} does not lie in it; set --output DIR")
    with distributed.init_from_env(network.device.type):
        results, predictions = run_test(network, output=output, compile=args.compile, restart=args.restart)
    console.say(f"results and predictions: {output}")
    if distributed.is_main() and (output / "metrics.jsonl").exists():
        from gcvideo.report.pages import write_run_report

        console.say(f"report of the run: {write_run_report(output)}")
    return results, predictions


def rescore(args: argparse.Namespace) -> tuple[dict[str, Any], Predictions]:
    """Accuracy by name, per class, confusions, calibration; of each of several networks; with --compare, McNemar's."""
    from gcvideo.analysis.statistics import mcnemar
    from gcvideo.eval.predictions import Predictions
    from gcvideo.eval.scoring import details, score, summary

    names, weights = args.from_predictions, args.weights or [1.0] * len(args.from_predictions)
    if len(weights) != len(names) or not sum(weights):
        raise ConfigError(f"--weights: give a number for each of the {len(names)} files, not all of them 0")
    several = [Predictions.load(path) for path in names]
    several = [_chosen(one, args) for one in [Predictions.average(several, names=names, weights=weights), *several]]
    predictions = several[0]
    results = {
        **{name: predictions.info.get(name) for name in ("protocol", "annotation", "fingerprint", "checkpoint")},
        **predictions.summary(),
        **(details(predictions, thresholds=predictions.info.get("thresholds")) or summary(score(predictions))),
    }
    if len(names) > 1:
        results["networks"] = [
            {"predictions": name, "weight": weight, **one.accuracy()}
            for name, weight, one in zip(names, weights, several[1:], strict=True)
        ]
    if args.compare:
        other = Predictions.load(args.compare)
        other.ensemble = args.ensemble or other.ensemble
        both = (" and ".join(names), args.compare)
        results["mcnemar"] = {"second": args.compare, **mcnemar(predictions, other, names=both)}
    return results, predictions


def _chosen(predictions: Predictions, args: argparse.Namespace) -> Predictions:
    """The videos of --subset, by the ensemble of --ensemble."""
    predictions.ensemble = args.ensemble or predictions.ensemble
    if args.subset:
        wanted = set(Path(args.subset).read_text(encoding="utf-8").splitlines()) - {""}
        if unknown := sorted(wanted - {*predictions.ids, *(failure.id for failure in predictions.failures)}):
            raise DataError(f"{args.subset}: {unknown[0]!r} is no id of the predictions; list ids, one a line")
        predictions = predictions.select([id in wanted for id in predictions.ids])
        predictions.failures = [failure for failure in predictions.failures if failure.id in wanted]
    return predictions


def _show(results: dict[str, Any]) -> None:
    """Print the accuracies by name, and the videos that failed."""
    names = {"clip": "clip (each view alone)", "video": "video (views ensembled)"}
    if results["failed"]:
        names["video_of_all"] = "video, the unreadable counted as wrong"
    tops = [top for top in MEASURES if top in results.get("video", {})]
    rows = [[names[kind], *(percent(results[kind][top]) for top in tops)] for kind in names if kind in results]
    counted = f"{results['answered']} of {results['videos']} videos, {results['protocol']}, {results['ensemble']}"
    if rows:
        console.table(rows, columns=["accuracy", *map(MEASURES.__getitem__, tops)], title=counted)
    else:
        console.say(f"{counted}: no accuracy, because no video has a label or could be read")
    for text in filter(None, (results.get("context"), results.get("verdict"))):
        console.say(text)
    for failure in results["failures"][:10]:
        console.warn(f"{printable(failure['path'] or failure['id'])}: {printable(failure['reason'])}")


def _show_classes(results: dict[str, Any]) -> None:
    """Print what re-scoring adds: accuracy by class, calibration, the comparison."""
    for network in results.get("networks", []):
        tops = " and ".join(percent(network["video"][top]) for top in MEASURES if top in network["video"])
        console.say(f"{printable(network['predictions'])} alone, weight {network['weight']:g}: {tops}")
    console.say()
    if "thresholds" in results:
        found = results["per_class"]
        rows = [[printable(row["class"]), row["videos"], *(f"{row[of]:.4f}" for of in FIGURES)] for row in found]
        console.table(rows, columns=["class", "videos", *FIGURES])
        return
    rows = [
        [printable(row["class"]), row["videos"], percent(row["top1"]), printable(row["most_taken_for"] or "")]
        for row in sorted(results["per_class"], key=lambda row: row["top1"])
    ]
    console.table(rows, columns=["class", "videos", "top-1", "most often taken for"])
    console.say(f"\nmean of the classes' top-1: {percent(results['mean_class_top1'])}")
    console.say(f"expected calibration error: {results['calibration']['expected_calibration_error']:.4f}")
    if "mcnemar" in results:
        test = results["mcnemar"]
        console.say(
            f"against {printable(test['second'])}, {test['videos']} videos in common: "
            f"{percent(test['top1_first'])} and {percent(test['top1_second'])}; only the first is right on "
            f"{test['only_first_right']}, only the second on {test['only_second_right']}; "
            f"McNemar's exact p = {test['p_value']:.4g}"
        )
