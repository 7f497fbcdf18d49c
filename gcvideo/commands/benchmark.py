"""Command ``gcvideo benchmark NAME ...``: each benchmark is a module that is imported only when it is run."""

from __future__ import annotations

import argparse
from importlib import import_module

from gcvideo.files import require_writable_outputs

# Name -> module with `add_arguments(parser)` and `run(args) -> int | None`.
BENCHMARKS = {
    "compare": "gcvideo.benchmark.compare",
    "complexity": "gcvideo.analysis.complexity",
    "blocks": "gcvideo.benchmark.blocks",
    "infer": "gcvideo.benchmark.infer",
    "loader": "gcvideo.benchmark.loader",
    "train": "gcvideo.benchmark.train",
}
HELP = {
    "compare": "networks in one table: size, time, memory, throughput, accuracy, and how their blocks scale",
    "complexity": "parameters and multiply-adds of configs, without running them",
    "blocks": "context and non-local blocks against memory bandwidth, the original code and each other",
    "infer": "time to test a video, decoding included, beside pytorchvideo's network",
    "loader": "time to read a training clip and a test video, beside other toolkits",
    "train": "time of a training step, beside pytorchvideo's network, and with context blocks",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the benchmark's name; what follows it is parsed by the benchmark itself."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "benchmarks:\n" + "\n".join(f"  {name:12}{text}" for name, text in HELP.items())
    parser.add_argument("benchmark", choices=BENCHMARKS, metavar="BENCHMARK", help=", ".join(BENCHMARKS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="see BENCHMARK --help")


def run(args: argparse.Namespace) -> int | None:
    """Run one benchmark."""
    module = import_module(BENCHMARKS[args.benchmark])
    parser = argparse.ArgumentParser(prog=f"gcvideo benchmark {args.benchmark}", description=HELP[args.benchmark])
    module.add_arguments(parser)
    parsed = parser.parse_intermixed_args(args.arguments)
    require_writable_outputs(parsed)
    code: int | None = module.run(parsed)
    return code
