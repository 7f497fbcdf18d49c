"""``gcvideo train CONFIG [key=value ...]``: train a network; alone, or on many processes under ``torchrun``."""

import argparse

from gcvideo import console, distributed
from gcvideo.config import load_config
from gcvideo.config.load import help_lines
from gcvideo.errors import ConfigError
from gcvideo.files import write_json


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
        if distributed.is_main():
            write_json(args.json, results)
    return 0
