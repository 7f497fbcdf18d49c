"""``gcvideo fit FOLDER|LIST [key=value ...]``: from a folder of videos to a tested classifier, with a verdict."""

import argparse
import time

from gcvideo.console import warn
from gcvideo.errors import ConfigError
from gcvideo.files import write_json


def run(args: argparse.Namespace) -> int:
    """Fit; returns 0, or 75 where a signal stopped it."""
    began = time.monotonic()
    if args.folds == 1 or (args.folds and (args.test or args.seeds > 1)):
        raise ConfigError("--folds: tests on every video in turn, so give 2 or more, and neither --test nor --seeds")
    from gcvideo.fit.run import fit
    from gcvideo.train.signals import EXIT_CODE, Stopped

    try:
        results = fit(args, began=began)
    except Stopped as signal:
        warn(f"stopped by {signal}; the same command starts again, or says how to finish the training")
        return EXIT_CODE
    write_json(args.json, results)
    return 0
