"""Benchmark harness: the options, the device setup, the tables and the JSON file that all benchmarks share."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gcvideo import console
from gcvideo.arguments import FILE_OPTIONS, FOLDER_OPTIONS
from gcvideo.device import describe, pick_device, pick_precision, tune, versions
from gcvideo.files import write_json

Row = Mapping[str, object]  # column -> value


def set_up(args: argparse.Namespace) -> tuple[torch.device, str, str]:
    """Set the CPU threads, and prepare the device.

    Returns:
        the device, the precision ("fp32" or "bf16"), and a line that describes both.
    """
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
