"""Parts: one job over many items, shared among processes on any number of machines, without any talk among them.

A part takes every N-th item. Three ways lead to it: ``--part I/N`` (I from 1), as for a job array of Slurm;
``torchrun`` (``RANK``, ``WORLD_SIZE``); ``srun`` (``SLURM_PROCID``, ``SLURM_STEP_NUM_TASKS``). With ``--part`` under
one of the others, each process takes its share of that part.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gcvideo.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """One of the parts of a job.

    Attributes:
        number: from 1.
        count: of all parts; 1 where the job is whole.
    """

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"part {self.number}/{self.count}"

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Part:
        """The part that ``--part`` and the process's environment mean.

        Raises:
            ConfigError: ``--part`` is no ``I/N`` with I from 1 to N.
        """
        number, count = 1, 1
        if args.part is not None:
            match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", args.part)
            number, count = (int(match[1]), int(match[2])) if match else (0, 0)
            if not 1 <= number <= count:
                raise ConfigError(f"--part: expected I/N with I from 1 to N, as 1/4 to 4/4, not {args.part!r}")
        rank, world = _place()
        return cls((number - 1) * world + rank + 1, count * world)

    @property
    def is_whole(self) -> bool:
        """Whether there are no other parts."""
        return self.count == 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this part, in their order. Every item is in one part."""
        return items[self.number - 1 :: self.count]

    def file(self, path: str | Path) -> Path:
        """The name of this part's own file: ``out.part-2-of-4.csv``; the path itself where the job is whole."""
        path = Path(path)
        return path if self.is_whole else path.with_name(f"{path.stem}.part-{self.number}-of-{self.count}{path.suffix}")


WHOLE = Part()


def _place() -> tuple[int, int]:
    """Rank and number of the processes that a launcher started."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ.get("RANK", "0")), int(os.environ["WORLD_SIZE"])
    # The script of a batch job has a SLURM_PROCID too, but only what srun starts belongs to a step.
    if "SLURM_PROCID" in os.environ and ("SLURM_STEP_ID" in os.environ or "SLURM_JOB_ID" not in os.environ):
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS", "1")
        return int(os.environ["SLURM_PROCID"]), int(tasks)
    return 0, 1
