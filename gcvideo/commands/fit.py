"""``gcvideo fit FOLDER|LIST [key=value ...]``: from a folder of videos to a tested classifier, with a verdict."""

import argparse
import time

from gcvideo.arguments import require_numbers
from gcvideo.console import warn
from gcvideo.errors import ConfigError
from gcvideo.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = (
        "Exit codes: 0 trained and tested, for any verdict; 2 a mistake, in one line; 75 stopped by a signal."
    )
    add = parser.add_argument
    text = "a folder with a folder of videos for each class (or with train, val and test folders of these), or a list"
    add("source", metavar="FOLDER|LIST", help=text)
    add("overrides", nargs="*", metavar="key=value", help="fields of the config that are not to be chosen")
    add("--test", metavar="FOLDER|LIST", help="videos to test on; by default a fifth of all is held out")
    add("--root", metavar="FOLDER", help="folder of the videos of a list; by default the list's own")
    add("--minutes", type=float, default=30, help="time for everything (%(default)g)")
    add("--name", help="of the run; by default that of the folder or list")
    add("--seeds", type=int, default=1, metavar="N", help="train so many times: mean and spread")
    add("--folds", type=int, default=0, metavar="K", help="test on every video, by cross-validation: K + 1 trainings")
    add("--overwrite", action="store_true", help="replace the run of this name")
    add("--dry-run", action="store_true", help="look, plan and estimate; train nothing")


def run(args: argparse.Namespace) -> int:
    """Fit; returns 0, or 75 where a signal stopped it."""
    began = time.monotonic()
    require_numbers(args, minutes=0.01, seeds=1, folds=0)
    if args.folds == 1 or (args.folds and (args.test or args.seeds > 1)):
        raise ConfigError("--folds: tests on every video in turn, so give 2 or more, and neither --test nor --seeds")
    from gcvideo.fit.run import fit
    from gcvideo.train.signals import EXIT_CODE, Stopped

    try:
        results = fit(args, began=began)
    except Stopped as signal:
        warn(f"stopped by {signal}; the same command starts again, or says how to finish the training")
        return EXIT_CODE
    if args.json:
        write_json(args.json, results)
    return 0
