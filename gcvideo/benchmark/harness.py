"""Benchmark harness: the options, the device setup, the tables and the JSON file that all benchmarks share."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gcvideo import console
from gcvideo.arguments import FILE_OPTIONS, FOLDER_OPTIONS, require_numbers
from gcvideo.device import describe, pick_device, pick_precision, tune, versions
from gcvideo.files import write_json

Row = Mapping[str, object]  # column -> value


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --rounds, --threads, --device and --precision."""
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="runs of each (default 7)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default torch's choice)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    text = "of gcvideo's networks (default auto: the faster one on this device)"
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"], help=text)


def set_up(args: argparse.Namespace, **least: Any) -> tuple[torch.device, str, str]:
    """Check the options, set the CPU threads, and prepare the device.

    Args:
        least: smallest values of the benchmark's own options.

    Returns:
        the device, the precision ("fp32" or "bf16"), and a line that describes both.
    """
    require_numbers(args, rounds=1, threads=1, **least)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    tune(device)
    precision = pick_precision(getattr(args, "precision", "auto"), device)
    return device, precision, describe(device, precision)


def finish(args: argparse.Namespace, results: Mapping[str, Any], tables: Mapping[str, Sequence[Row]]) -> None:
    """Print the tables and the named ratios of the results, and write the JSON file.

    Args:
        tables: title -> rows; empty tables are left out. A row that lacks a column of another one shows a dash.
    """
    ratios = [{"name": name, "ratio": value} for name, value in results.get("figures", {}).items()]
    for title, rows in {**tables, "ratios": ratios}.items():
        if rows:
            columns = list(dict.fromkeys(column for row in rows for column in row))
            console.table([[row.get(name, "–") for name in columns] for row in rows], columns=columns, title=title)
            console.say()
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name not in (*FILE_OPTIONS, *FOLDER_OPTIONS)}
        write_json(args.json, {**results, "settings": settings, "versions": versions()})
