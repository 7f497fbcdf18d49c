"""Time between the last batch of a validation and the next training step, with made-up predictions of many videos.

``python -m tests.validation_time [VIDEOS] [PROCESSES]`` prints it for 20,000 videos of 400 classes over 8 processes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from torch import nn

from gcvideo import distributed
from gcvideo.config import DataConfig, RunConfig, TestConfig
from gcvideo.data.records import RecordTable
from gcvideo.eval.evaluator import evaluate
from gcvideo.eval.predictions import Predictions, VideoScores
from gcvideo.eval.scoring import details
from gcvideo.train.logger import validation_metrics
from gcvideo.train.run_folder import RunFolder
from tests.processes import start_ranks, wait


def made_up(videos: int, *, classes: int, rank: int = 0, world: int = 1) -> list[VideoScores]:
    """Scores of every ``world``-th video, from ``rank`` on; the same whatever the number of processes."""
    found = []
    for index in range(rank, videos, world):
        logits = np.random.default_rng(index).standard_normal(classes, np.float32)
        scores = np.exp(logits) / np.exp(logits).sum()
        label, top5 = index % classes, np.argsort(-logits)[:5]
        hits = (int(top5[0] == label), int(label in top5))
        found.append(VideoScores(index, f"{index:05}", label, 1, *hits, scores, logits, scores))
    return found


def finish(own: list[VideoScores], records: RecordTable, folder: RunFolder) -> Predictions:
    """What follows the last batch: gathering, metrics, the file, and the next step's exchange of gradients."""
    predictions = evaluate(nn.Identity(), [], test=TestConfig(), data=DataConfig(), finished=own)
    assert predictions.count_non_finite() == 0
    assert validation_metrics(predictions)
    assert details(predictions)["per_class"]
    if distributed.is_main():
        folder.save_validation(predictions, records, epoch=1.0)
    distributed.agree(0)
    return predictions


def _run(videos: int, place: str) -> None:
    with distributed.init_from_env():
        own = made_up(videos, classes=400, rank=distributed.rank(), world=distributed.world_size())
        records = RecordTable.of_files([f"{index:05}.mp4" for index in range(videos)])
        distributed.agree(0)
        began, cpu = time.perf_counter(), time.process_time()
        finish(own, records, RunFolder(RunConfig(name="made_up", output=place)))
        if distributed.is_main():
            cpu = time.process_time() - cpu
            print(f"{time.perf_counter() - began:.2f} s from the last batch to the next step; CPU {cpu:.2f} s")


if __name__ == "__main__":
    videos, processes = [*map(int, sys.argv[1:]), *(20_000, 8)[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "made_up").mkdir()
        sys.exit(any(wait(start_ranks(_run, videos, place, processes=processes), 300)))
