"""``gcvideo analyze NAME CHECKPOINT [key=value ...]``: what the blocks of a trained network do with its videos."""

from __future__ import annotations

import argparse
from importlib import import_module

from gcvideo.files import require_writable_outputs

# Name -> module with `add_arguments(parser)` and `run(args) -> int | None`, and a line of help.
ANALYSES = {
    "attention": ("gcvideo.commands.analyze_attention", "does attention depend on the query? distances over positions"),
    "simplify": ("gcvideo.commands.analyze_simplify", "give all queries of a trained non-local network one map"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the analysis's name; what follows it is parsed by the analysis itself."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "analyses:\n" + "\n".join(f"  {name:12}{text}" for name, (_, text) in ANALYSES.items())
    parser.add_argument("analysis", choices=ANALYSES, metavar="ANALYSIS", help=", ".join(ANALYSES))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="see ANALYSIS --help")


def run(args: argparse.Namespace) -> int | None:
    """Run one analysis."""
    name, text = ANALYSES[args.analysis]
    module = import_module(name)
    parser = argparse.ArgumentParser(prog=f"gcvideo analyze {args.analysis}", description=text)
    module.add_arguments(parser)
    parsed = parser.parse_intermixed_args(args.arguments)
    require_writable_outputs(parsed)
    code: int | None = module.run(parsed)
    return code
