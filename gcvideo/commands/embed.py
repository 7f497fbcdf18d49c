"""``gcvideo embed VIDEO ... --checkpoint CKPT --out FILE.parquet``: write the feature vectors of videos.

Exit code: 0 if every video was embedded, 1 if some could not be read, 2 if none could be or the command was wrong.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from gcvideo import distributed
from gcvideo.arguments import chosen_views, require_numbers
from gcvideo.console import printable, warn
from gcvideo.errors import ConfigError
from gcvideo.files import require_writable, write_json
from gcvideo.parts import Part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.epilog = "Exit code: 0 if every video was embedded, 1 if some could not be read, 2 if none could be."
    add = parser.add_argument
    text = "files, folders of videos or of frames, patterns such as 'clips/*.mp4', annotations, or text files of paths"
    add("videos", nargs="+", metavar="VIDEO", help=text)
    add("--checkpoint", required=True, help="a checkpoint, or the folder of a run")
    text = "FILE.parquet for the vectors of all videos, or a folder for an .npz file of each"
    add("--out", required=True, type=Path, metavar="FILE | FOLDER", help=text)
    add("--root", metavar="FOLDER", help="folder of the videos of a list; by default the list's own")
    text = "head (what the classifier classifies), or stem, res2, res3, res4, res5 (default: %(default)s)"
    add("--layer", default="head", help=text)
    text = "one vector a video; one a clip or window; or none: the feature map of each view, into .npz files"
    add("--pool", choices=("video", "clip", "none"), help=f"{text} (default: video; with windows clip)")
    add("--fps", type=float, help="frames per second of videos that are folders of frames")
    Part.add_argument(parser)
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--compile", action="store_true", help="compile the network first (pays for many videos)")
    add("--workers", type=int, default=2, help="processes that decode ahead (default: %(default)s)")
    add = parser.add_argument_group("views of each video or window").add_argument
    add("--clips", type=int, metavar="N", help="clips (default: as in the checkpoint's test; enough to fill a window)")
    text = "crops of each clip (default: as in the checkpoint's test; of a window the centre)"
    add("--crops", type=int, choices=(1, 3, 5), help=text)
    add("--fast", action="store_true", help="the whole frame once instead of crops")
    text = "length of a window in seconds: a vector a window (default with --step: that of a clip)"
    add("--window", type=float, metavar="S", help=text)
    add("--step", type=float, metavar="S", help="seconds between the starts of windows (default: no overlap)")


def run(args: argparse.Namespace) -> int:
    """Embed every video of this part."""
    from gcvideo.predict.embedding import make_recipe
    from gcvideo.predict.inputs import find_records
    from gcvideo.predict.predictor import load
    from gcvideo.predict.vectors import embed_to

    require_numbers(args, workers=0, clips=1, window=1e-3, step=1e-3, fps=1e-3)
    part, in_one = Part.from_args(args), args.out.suffix == ".parquet"
    if in_one and args.pool == "none":
        raise ConfigError("--pool none: feature maps are not for Parquet files; give a folder as --out")
    if args.out.suffix == ".npz":
        raise ConfigError(f"--out: {args.out} would hold one video; give a folder, or a file that ends in .parquet")
    require_writable(args.out, key="--out", folder=not in_one)
    records, refused = find_records(args.videos, root=args.root)
    predictor = load(args.checkpoint, device=args.device, compile=args.compile)
    predictor.config.data.frame_rate = args.fps or predictor.config.data.frame_rate
    recipe = make_recipe(predictor.config, layer=args.layer, pool=args.pool, window=args.window, step=args.step)
    recipe = replace(recipe, test=replace(recipe.test, **chosen_views(args)))
    failures = list(part.share(refused))
    count = len(failures) + len(part.share(range(len(records))))
    failures += embed_to(predictor, records, args.out, recipe=recipe, part=part, workers=args.workers)
    for failure in failures:
        warn(f"{printable(failure.path)}: {printable(failure.reason)}", every_process=True)
    place = part.file(args.out) if in_one else args.out
    print(f"vectors of {count - len(failures)} of {count} videos: {printable(str(place))}", flush=True)
    if args.json:
        results = {"out": str(place), "videos": count, "failures": [failure._asdict() for failure in failures]}
        write_json(part.file(args.json), results)
    if not failures or distributed.world_size() > 1:  # torchrun would end the other processes
        return 0
    return 1 if len(failures) < count else 2
