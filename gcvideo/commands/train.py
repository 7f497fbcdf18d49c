"""``gcvideo train CONFIG [key=value ...]``: train a network; alone, or on many processes under ``torchrun``."""

import argparse

from gcvideo import console, distributed
from gcvideo.config import load_config
from gcvideo.config.reference import help_lines
from gcvideo.errors import ConfigError
from gcvideo.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = (
        "Exit codes: 0 trained to the end; 2 a mistake in config or data, in one line; 75 stopped by SIGTERM, SIGUSR1 "
        "or Ctrl-C after saving a checkpoint: continue with the same command and --resume."
    )
    add = parser.add_argument
    add("config", nargs="?", help="a YAML file, or the name of a shipped one (demo/synthetic_gc.yaml)")
    add("overrides", nargs="*", metavar="key=value", help="changes to the config (optim.lr=0.02)")
    add("--help-config", nargs="?", const="", metavar="KEY", help="explain a config key or section, or all")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if there is one")
    start.add_argument(
        "--overwrite", action="store_true", help="remove the run in the folder but its log, and start again"
    )
    trial = parser.add_argument_group("before a long training").add_mutually_exclusive_group()
    trial.add_argument("--dry-run", action="store_true", help="a few steps, then memory, speed and time to finish")
    text = "a learning-rate range test: tens of steps at rising rates, and a suggested optim.lr"
    trial.add_argument("--find-lr", action="store_true", help=text)
    trial.add_argument("--profile", action="store_true", help="a few steps under torch's profiler, and a trace")
    trial.add_argument(
        "--overfit", type=int, metavar="N", help="overfit N videos until all are learned, for 200 steps or train.epochs"
    )


def run(args: argparse.Namespace) -> int:
    """Train; returns 0, or 75 where a signal stopped the run."""
    if args.help_config is not None:
        print("\n".join(help_lines(args.help_config)))
        return 0
    if args.config is None:
        raise ConfigError("give a config: a YAML file, or the name of a shipped one")
    config = load_config(args.config, args.overrides)
    from gcvideo.device import pick_device
    from gcvideo.train import dry_run as trials
    from gcvideo.train.signals import EXIT_CODE, Stopped
    from gcvideo.train.trainer import Trainer

    if args.overfit is not None:
        config = trials.overfitting(config, args.overfit)
    with distributed.init_from_env(pick_device(config.device).type) as restarted:
        if args.dry_run:
            results = trials.dry_run(config)
        elif args.find_lr:
            results = trials.find_lr(config)
        elif args.profile:
            results = {"trace": str(trials.profile(config))}
        else:
            # torchrun restarts a failed job with the same arguments: it resumes from the last checkpoint.
            trainer = Trainer(config, overfit=args.overfit)
            overwrite = args.overwrite and (not restarted or trainer.folder.overwrite_is_pending())
            try:
                results = trainer.fit(resume=args.resume or (restarted and not overwrite), overwrite=overwrite)
            except Stopped as signal:
                console.warn(f"stopped by {signal}; a checkpoint is saved, continue with --resume")
                return EXIT_CODE
            if distributed.is_main():
                from gcvideo.report.pages import write_run_report

                write_run_report(config.run_dir)
        if args.json and distributed.is_main():
            write_json(args.json, results)
    return 0
