"""``gcvideo test CHECKPOINT [CONFIG] [key=value ...]``: multi-view test; or re-score the predictions of one."""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from gcvideo import console, distributed
from gcvideo.errors import ConfigError, DataError
from gcvideo.eval.predictions import Predictions
from gcvideo.files import write_json


def run(args: argparse.Namespace) -> int:
    """Test, or re-score; prints tables and writes the results."""
    if [bool(args.checkpoint), bool(args.from_predictions), bool(args.mean)].count(True) != 1:
        raise ConfigError("give either a checkpoint, or --from-predictions FILE, or --mean RUN RUN ...")
    for option in ("ensemble", "subset", "compare", "weights"):
        if getattr(args, option) and not args.from_predictions:
            raise ConfigError(f"--{option} re-scores a predictions.npz: give one with --from-predictions FILE")
    if args.mean and args.html:
        raise ConfigError("--html: is the page of one test, and --mean is of several: leave one of the two out")
    results, predictions = (mean_of_tests if args.mean else rescore if args.from_predictions else _test)(args)
    if distributed.is_main():
        from gcvideo.report.page import render

        console.say(render("test.txt.j2", results=results, rescored=args.from_predictions).strip("\n"))
        for failure in results.get("failures", ())[:10]:
            console.warn(console.printable(f"{failure['path'] or failure['id']}: {failure['reason']}"))
        write_json(args.json, results)
        if args.html and predictions is not None:
            from gcvideo.report.pages import write_test_report

            write_test_report(args.html, results, predictions)
            console.say(f"report: {args.html}")
    return 0 if results.get("answered", True) else 2


def mean_of_tests(args: argparse.Namespace) -> tuple[dict[str, Any], None]:
    """Mean and standard deviation (n - 1) of the video accuracies of several tests."""
    tests: dict[str, dict[str, Any]] = {}
    protocols: dict[str, str] = {}  # -> the first file
    for run in args.mean:
        file = str(Path(run) / "results.json" if Path(run).is_dir() else run)
        try:
            test = json.loads(Path(file).read_text(encoding="utf-8"))
            protocols.setdefault(f"{test['protocol']}, {test['ensemble']}", file)
            tests[file] = {**{name: test[name] for name in ("annotation", "videos", "failed")}, **test["video"]}
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{file}: holds no results of a test; run gcvideo test on this run first") from None
    if len(protocols) > 1:
        (own, first), (other, file) = [*protocols.items()][:2]
        raise DataError(f"{file}: was tested by {other}, but {first} by {own}; test both in one way")
    if len(tests) < max(2, len(args.mean)):
        raise ConfigError("--mean: give at least two runs, each once")
    values = {top: [each[top] for each in tests.values()] for top in test["video"]}
    results: dict[str, Any] = {"protocol": next(iter(protocols)), "tests": tests}
    for name, function in (("mean", statistics.fmean), ("sd", statistics.stdev)):
        results[name] = {top: function(of) for top, of in values.items()}
    return results, None


def _test(args: argparse.Namespace) -> tuple[dict[str, Any], Predictions]:
    from gcvideo.eval.trained import load_trained, run_test

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
    from gcvideo.eval.scoring import details, score, summary

    names, weights = args.from_predictions, args.weights or [1.0] * len(args.from_predictions)
    if len(weights) != len(names) or not sum(weights):
        raise ConfigError(f"--weights: give a number for each of the {len(names)} files, not all of them 0")
    several = [_chosen(Predictions.load(path), args) for path in names]
    predictions = Predictions.average(several, names=names, weights=weights)
    results = {
        **{name: predictions.info.get(name) for name in ("protocol", "annotation", "fingerprint", "checkpoint")},
        **predictions.summary(),
        **(details(predictions, thresholds=predictions.info.get("thresholds")) or summary(score(predictions))),
    }
    if len(names) > 1:
        each = zip(names, weights, several, strict=True)
        results["networks"] = [{"predictions": name, "weight": w, **one.accuracy()} for name, w, one in each]
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
