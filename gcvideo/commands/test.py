"""``gcvideo test CHECKPOINT [CONFIG] [key=value ...]``: multi-view test; or re-score the predictions of one."""

from __future__ import annotations

import argparse
from pathlib import Path

from gcvideo import console, distributed
from gcvideo.commands.accuracies import show
from gcvideo.config import RunConfig
from gcvideo.errors import ConfigError
from gcvideo.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.usage = "gcvideo test CHECKPOINT [CONFIG] [key=value ...] [options]"
    parser.epilog = "Exit code: 0 with results; 2 a mistake in config or data, or not one video that could be read."
    parser.add_argument(
        "checkpoint", nargs="?", help="a checkpoint, or the folder of a run (its checkpoints/best.pt is taken)"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="CONFIG | key=value",
        help="a config to take data and views from, and changes; by default the config stored in the checkpoint",
    )
    parser.add_argument("--output", metavar="DIR", help="where the results go; by default the run's own folder")
    parser.add_argument("--json", metavar="FILE", help="write the results there as well")
    parser.add_argument("--html", metavar="FILE", help="write a report with accuracy per class, mistakes and failures")
    parser.add_argument("--restart", action="store_true", help="forget the videos a killed test has finished")
    parser.add_argument("--compile", action="store_true", help="compile the network first (pays for many videos)")
    scoring = parser.add_argument_group("re-scoring, without model or videos")
    scoring.add_argument("--from-predictions", metavar="FILE", help="a predictions.npz")
    scoring.add_argument("--ensemble", choices=("softmax", "logits", "max"), help="another way to ensemble the views")
    scoring.add_argument("--subset", metavar="FILE", help="only the videos whose ids this text file lists, one a line")
    scoring.add_argument("--compare", metavar="FILE", help="a second predictions.npz: McNemar's test between the two")


def run(args: argparse.Namespace) -> int:
    """Test, or re-score; prints a table and writes what was found."""
    if args.from_predictions:
        from gcvideo.commands.rescore import rescore

        rescore(args)
        return 0
    for option in ("ensemble", "subset", "compare"):
        if getattr(args, option):
            raise ConfigError(f"--{option} re-scores a predictions.npz: give one with --from-predictions FILE")
    if not args.checkpoint:
        raise ConfigError("give a checkpoint, or --from-predictions FILE")
    return _test(args)


def _test(args: argparse.Namespace) -> int:
    from gcvideo.device import describe, pick_precision
    from gcvideo.eval.optimize import optimize_for_inference
    from gcvideo.eval.test_run import hash_file, run_test
    from gcvideo.eval.trained import load_trained

    network = load_trained(args.checkpoint, overrides=args.overrides)
    path, config, device = network.path, network.config, network.device
    checkpoint = {**network.checkpoint, "path": str(path), "sha256": hash_file(path)}
    output = Path(args.output).expanduser() if args.output else _run_folder(path, config)
    precision = pick_precision(config.train.precision, device)
    model = optimize_for_inference(network.model, precision=precision, compile=args.compile)
    with distributed.init_from_env(device.type):
        console.say(f"{path} on {describe(device, precision)}")
        results, predictions = run_test(
            model,
            config,
            output=output,
            checkpoint=checkpoint,
            precision=precision,
            restart=args.restart,
        )
    code = 0 if results["answered"] else 2
    if not distributed.is_main():
        return code
    show(results)
    console.say(f"results and predictions: {output}")
    if args.json:
        write_json(args.json, results)
    if (output / "metrics.jsonl").exists() and not config.test.whole_frame:
        from gcvideo.report.pages import write_run_report

        console.say(f"report of the run: {write_run_report(output)}")
    if args.html:
        from gcvideo.report.pages import write_test_report

        write_test_report(args.html, results, predictions)
        console.say(f"report: {args.html}")
    return code


def _run_folder(checkpoint: Path, config: RunConfig) -> Path:
    """The run that the checkpoint lies in, else the folder that the config names."""
    inside = checkpoint.parent.name == "checkpoints"
    return checkpoint.parent.parent if inside else config.run_dir
