"""Procedural motion."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gcvideo.config import DataConfig, load_config
from gcvideo.data.annotations import load_records
from gcvideo.errors import ConfigError
from gcvideo.prepare.bodies import ACTIONS, TABLE, pose_joints
from gcvideo.prepare.motion import CLASSES, MotionClips, draw_clip, write_samples
from gcvideo.train.trainer import Trainer
from gcvideo.video import open_video

ROOT = Path(__file__).resolve().parents[3]
DATA = DataConfig(frames=4, crop=32, short_side=(32, 32))
U = (np.arange(24) + 0.5) / 24 - 0.5
Q = 4 * np.pi * U
BONES = [(0, 1), (3, 4), (4, 5), (6, 7), (7, 8), (9, 10), (10, 11), (12, 13), (13, 14)]


def test_classes_are_distinct_and_complete():
    assert len(set(CLASSES)) == len(CLASSES) >= 48
    assert set(TABLE["camera"]) <= set(TABLE["planes"])
    assert load_config(ROOT / "configs/motion/plain.yaml").model.num_classes == len(CLASSES)


@pytest.mark.parametrize("action", ACTIONS)
def test_bones_keep_their_lengths(action):
    joints = pose_joints(action, U, Q)
    assert joints.shape == (24, 16, 3)
    for i, j in BONES:
        length = np.linalg.norm(joints[:, i] - joints[:, j], axis=-1)
        np.testing.assert_allclose(length, length[0], atol=1e-9)


@pytest.mark.parametrize("action", sorted(set(ACTIONS) - {"stands"}))
def test_figures_move_and_stand_on_the_ground_or_hang(action):
    joints, pose = pose_joints(action, U, Q), ACTIONS[action]
    assert np.ptp(joints, axis=0).max() > 0.1
    if pose.get("hang"):
        np.testing.assert_allclose(np.ptp(joints[:, [8, 14]].mean(axis=1), axis=0), 0, atol=1e-9)
    elif "lift" not in pose:
        np.testing.assert_allclose(joints[:, :15, 1].min(axis=1), 0, atol=1e-9)


def test_a_clip_depends_on_seed_epoch_and_slot_alone():
    first, second, other = (MotionClips(data=DATA, seed=seed) for seed in (3, 3, 4))
    slot = CLASSES.index("body jumps") + 2 * len(first)  # the second round of the epoch
    batch = first[1, slot]
    assert batch.clips.shape == (1, 3, 4, 32, 32)
    assert batch.clips.dtype == torch.uint8
    assert CLASSES[int(batch.labels[0])] == "body jumps"
    assert int(batch.indices[0]) == slot % len(first)
    assert torch.equal(batch.clips, second[1, slot].clips)
    for clips in (other[1, slot], first[2, slot], first[1, slot + len(CLASSES)]):
        assert not torch.equal(batch.clips, clips.clips)
    assert np.bincount(first.records.labels).min() == np.bincount(first.records.labels).max()


@pytest.mark.parametrize("frames", [1, 2, 8])
def test_clips_of_every_length(frames):
    clip = draw_clip(CLASSES.index("shape left"), np.random.default_rng(0), frames=frames, size=48)
    assert clip.shape == (frames, 48, 48, 3)
    assert clip.std() > 1


@pytest.mark.parametrize(("name", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_the_camera_moves_the_picture_as_the_class_says(name, axis, sign):
    votes = []
    for seed in range(4):
        clip = draw_clip(CLASSES.index(f"camera {name}"), np.random.default_rng(seed), frames=16, size=64)
        first, last = (frame.mean(axis=2) - frame.mean() for frame in clip[[7, 9]].astype(float))
        match = np.fft.ifft2(np.fft.fft2(last) * np.fft.fft2(first).conj()).real  # its peak lies at the shift
        shift = np.unravel_index(match.argmax(), match.shape)[axis]
        votes.append((shift + 32) % 64 - 32)
    assert sign * np.median(votes) > 0, votes


@pytest.mark.slow
def test_samples_are_videos_in_class_folders_and_a_picture(tmp_path):
    sheet = write_samples(tmp_path / "motion", per_class=1, workers=1)
    assert sheet.stat().st_size > 10_000
    records = load_records(tmp_path / "motion")
    assert sorted(records.classes) == sorted(CLASSES)
    assert len(records) == len(CLASSES)
    with open_video(records[0].path) as video:
        assert video.frames([0, 15]).shape == (2, 96, 96, 3)


def tiny(folder: Path, *overrides: str):
    small = ["model.width=4", "data.frames=4", "data.crop=32", "data.short_side=[32,32]", "train.precision=fp32"]
    short = ["optim.warmup_epochs=0", "train.epochs=0.002", "train.batch_size=4", "data.workers=0", "device=cpu"]
    return load_config(ROOT / "configs/motion/plain.yaml", [f"output={folder}", *small, *short, *overrides])


@pytest.mark.slow
def test_the_recipe_trains(tmp_path):
    results = Trainer(tiny(tmp_path)).fit()
    assert results["steps"] == 3
    checkpoint = torch.load(tmp_path / "motion_plain/checkpoints/last.pt", weights_only=True)
    assert tuple(checkpoint["classes"]) == CLASSES


@pytest.mark.parametrize("override", ["train.multigrid=long", "data.dataset=gcvideo.prepare.motion:Nothing"])
def test_a_data_set_that_cannot_be_used_is_refused(tmp_path, override):
    with pytest.raises(ConfigError, match=r"data\.dataset"):
        Trainer(tiny(tmp_path, override))
