"""Benchmark harness: options, device setup, timing loop, tables and JSON file, which all benchmarks share.

In the timing loop contenders alternate in one process, and ratios are taken within a round. On a shared machine
absolute times drift from minute to minute. So every round runs each contender once, in an order that is shuffled for
each round; a ratio is formed from two times of the same round, and the median over rounds is reported. Floors and
copies that a contender is compared with are contenders of the same run.
"""

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from gcvideo import console
from gcvideo.arguments import FILE_OPTIONS, FOLDER_OPTIONS
from gcvideo.device import describe, pick_device, pick_precision, tune, versions
from gcvideo.files import read_yaml, write_json

Contender = Callable[[], object]
Row = Mapping[str, object]  # column -> value
CPU = torch.device("cpu")
# Benchmark -> name of a ratio -> (over, under).
RATIOS = read_yaml(__file__, "ratios.yaml")


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


@dataclass(frozen=True)
class Times:
    """Measured times.

    Attributes:
        seconds: name of a contender -> seconds of one call, in the order of the rounds.
    """

    seconds: dict[str, list[float]]

    def milliseconds(self) -> dict[str, float]:
        """Median over the rounds of each contender."""
        return {name: 1000 * median(values) for name, values in self.seconds.items()}

    def within_rounds(self, over: str, under: str) -> list[float]:
        """Time of one contender divided by that of another one in the same round, for each round."""
        return [a / b for a, b in zip(self.seconds[over], self.seconds[under], strict=True)]

    def ratio(self, over: str, under: str) -> float:
        """Median of ``within_rounds``."""
        return median(self.within_rounds(over, under))

    def ratios(self, benchmark: str) -> dict[str, float]:
        """The ratios that ``ratios.yaml`` names for a benchmark, as far as both contenders were measured."""
        return {name: self.ratio(*pair) for name, pair in RATIOS[benchmark].items() if self.seconds.keys() >= set(pair)}

    def per_clip(self, clips: int) -> dict[str, dict[str, Any]]:
        """Times of each contender, and their ratio to the first one.

        Args:
            clips: that one call works on.

        Returns:
            name -> ``ms_per_clip`` and ``ratio``, each {"median", "q1", "q3"}.
        """
        first = next(iter(self.seconds))
        return {
            name: {
                "ms_per_clip": quartiles([1000 * second / clips for second in values]),
                "ratio": quartiles(self.within_rounds(name, first)),
            }
            for name, values in self.seconds.items()
        }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles as {"median", "q1", "q3"}."""
    q1, middle, q3 = np.quantile(np.asarray(values), (0.25, 0.5, 0.75))
    return {"median": float(middle), "q1": float(q1), "q3": float(q3)}


def time_contenders(
    contenders: Mapping[str, Contender],
    *,
    rounds: int,
    device: torch.device = CPU,
    warmup: int = 1,
    calls: int = 1,
    title: str | None = None,
) -> Times:
    """Time each contender once a round; see the top of this file.

    Args:
        contenders: name -> function to call.
        rounds: that count.
        device: where the contenders compute; it decides the clock, see ``pick_clock``.
        warmup: rounds before, which do not count.
        calls: of the contender in one timing, for work so short that starting and stopping the clock weighs.
        title: of a progress line; None shows none.
    """
    clock, shuffled = pick_clock(device), random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    progress = console.Progress(title, total=(warmup + rounds) * len(contenders), unit="runs") if title else None
    with progress or nullcontext():
        for number in range(warmup + rounds):
            for name in shuffled.sample(list(contenders), len(contenders)):
                taken = _time(contenders[name], clock, calls)
                if number >= warmup:
                    seconds[name].append(taken / calls)
                if progress:
                    progress.advance(now=name)
    return Times(seconds)


def pick_clock(device: torch.device) -> str:
    """Name of the clock: "cuda_events" on a GPU, "process_time" for one CPU thread, "perf_counter" for several.

    CPU time of one thread is disturbed little by other work on the machine. With several threads it would add up
    over them, so wall time is taken.
    """
    if device.type == "cuda":
        return "cuda_events"
    return "process_time" if torch.get_num_threads() == 1 else "perf_counter"


def _time(contender: Contender, clock: str, calls: int) -> float:
    """Seconds that ``calls`` calls take. On a GPU the span between two events on its stream, which is idle before."""
    if clock == "cuda_events":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            contender()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    read = getattr(time, clock)
    began = read()
    for _ in range(calls):
        contender()
    return float(read() - began)


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
