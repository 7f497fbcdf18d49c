"""``gcvideo embed VIDEO ... --checkpoint CKPT --out FILE.parquet``: write the feature vectors of videos.

Exit code: 0 if every video was embedded, 1 if some could not be read, 2 if none could be or the command was wrong.
"""

import argparse
from dataclasses import replace

from gcvideo import distributed
from gcvideo.arguments import chosen_views
from gcvideo.console import printable, warn
from gcvideo.data.records import Failure
from gcvideo.errors import ConfigError
from gcvideo.files import require_writable, write_json
from gcvideo.predict.embedding import make_recipe
from gcvideo.predict.inputs import find_videos
from gcvideo.predict.predictor import load
from gcvideo.predict.vectors import embed_to
from gcvideo.prepare.jobs import Part
from gcvideo.video.stream import without_credentials


def run(args: argparse.Namespace) -> int:
    """Embed every video of this part."""
    part, in_one = Part.from_args(args), args.out.suffix == ".parquet"
    if in_one and args.pool == "none":
        raise ConfigError("--pool none: feature maps are not for Parquet files; give a folder as --out")
    if args.out.suffix in (".npz", ".npy", ".csv", ".json"):
        raise ConfigError(f"--out: {args.out}: give a folder for an .npz file a video, or a file that ends in .parquet")
    require_writable(args.out, key="--out", folder=not in_one)
    records, live, refused = find_videos(args.videos, root=args.root)
    refused += [Failure(name, name, "is no file, but has no end") for name in map(without_credentials, live)]
    predictor = load(args.checkpoint, device=args.device, compile=args.compile)
    predictor.config.data.frame_rate = args.fps or predictor.config.data.frame_rate
    recipe = make_recipe(predictor.config, layer=args.layer, pool=args.pool, window=args.window, step=args.step)
    recipe = recipe._replace(test=replace(recipe.test, **chosen_views(args)))
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
