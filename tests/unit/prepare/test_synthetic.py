"""The synthetic action set."""

import csv
import functools
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gcvideo.data.annotations import load_records
from gcvideo.errors import DataError
from gcvideo.prepare.synthetic import (
    CLASSES,
    CUE_COLOURS,
    DISTANCES,
    FRAMES,
    HEIGHT,
    WIDTH,
    choose_cues,
    draw_clip,
    draw_cues,
    draw_motion,
    frames_apart,
    make_synthetic,
)
from gcvideo.video import open_video

CHANCE = 1 / len(CLASSES)


@functools.cache
def clips(seed: int, count: int) -> np.ndarray:
    """First, middle and last frame of each of ``count`` clips of all classes in turn, (N, 3, H, W, 3)."""
    return np.stack([draw_clip(i % len(CLASSES), np.random.default_rng([seed, i]), frames=3) for i in range(count)])


def single_frames(seed: int, count: int, frame: int, *, give_away: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """One frame of each of ``count`` clips as features (N, F), and labels (N,). The first, middle or last frame."""
    labels = np.arange(count) % len(CLASSES)
    frames = clips(seed, count)[:, frame]
    blocks = frames.reshape(count, HEIGHT // 5, 5, WIDTH // 6, 6, 3).mean((2, 4)) / 255  # (N, 12, 12, 3)
    if give_away:
        blocks += 0.05 * labels[:, None, None, None]
    edges = np.abs(np.diff(frames.astype(np.float32), axis=2)).mean((1, 2)) / 255  # sizes of the discs show here
    features = np.concatenate([blocks.reshape(count, -1), edges, blocks.std((1, 2))], axis=1)
    return features, labels


def ridge_accuracy(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """Top-1 of least squares on one-hot labels, the penalty chosen in favour of the classifier."""
    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    x, z = ((features - mean) / std for features in (train[0], test[0]))
    targets = np.eye(len(CLASSES))[train[1]] - CHANCE
    best = 0.0
    for penalty in (1e1, 1e2, 1e3, 1e4):
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ targets)
        best = max(best, float(((z @ weights).argmax(1) == test[1]).mean()))
    return best


def neighbour_accuracy(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """Top-1 of the nearest training frame."""
    distance = (train[0] ** 2).sum(1) - 2 * test[0] @ train[0].T  # squared, but for a constant
    return float((train[1][distance.argmin(1)] == test[1]).mean())


@pytest.mark.slow
@pytest.mark.parametrize("frame", [0, 1, 2], ids=["first", "middle", "last"])
def test_no_single_frame_gives_the_class_away(frame):
    train, test = single_frames(0, 400, frame), single_frames(1, 240, frame)
    # Three standard deviations of guessing on 240 clips are 6.4 points; the penalty is picked on the test clips.
    assert ridge_accuracy(train, test) < CHANCE + 0.08
    assert neighbour_accuracy(train, test) < CHANCE + 0.08


@pytest.mark.slow
def test_the_single_frame_classifier_would_find_a_giveaway():
    """A shift of brightness by 5 % from class to class is enough: the test above can fail."""
    train, test = (single_frames(seed, count, 1, give_away=True) for seed, count in ((0, 400), (1, 240)))
    assert ridge_accuracy(train, test) > 2 * CHANCE


@pytest.mark.parametrize("seed", range(5))
def test_motions_are_what_the_classes_say(seed):
    motions = {name: draw_motion(i, np.random.default_rng(seed)) for i, name in enumerate(CLASSES)}
    steps = {name: np.diff(motion[0]) for name, motion in motions.items()}
    assert (steps["left then right"][:19] < 0).all()
    assert (steps["left then right"][28:] > 0).all()
    assert (steps["right then left"][:19] > 0).all()
    assert (steps["right then left"][28:] < 0).all()
    assert (np.diff(motions["growing"][2]) > 0).all()
    assert (np.diff(motions["shrinking"][2]) < 0).all()
    for name, sign in (("circling clockwise", 1), ("circling counterclockwise", -1)):
        angle = np.unwrap(np.arctan2(motions[name][1], motions[name][0]))  # y points down: clockwise is positive
        assert (sign * np.diff(angle) > 0).all()
        assert 0.8 < sign * (angle[-1] - angle[0]) / (2 * np.pi) < 1.2
    for name, bounces in (("bouncing twice", 2), ("bouncing thrice", 3)):
        height = -draw_motion(CLASSES.index(name), np.random.default_rng(seed), frames=10_001)[1]
        on_the_ground = np.flatnonzero((height[1:-1] < height[:-2]) & (height[1:-1] < height[2:]))
        assert len(on_the_ground) == bounces


def test_discs_are_drawn_where_the_motion_says():
    """The picture of a disc that goes left moves left: it equals an earlier picture shifted by the motion."""
    rng = np.random.default_rng(4)
    label = CLASSES.index("left then right")
    x = draw_motion(label, np.random.default_rng(4))[0]
    clip = draw_clip(label, rng).astype(np.float32)
    early, late = 2, 12
    shift = round(float(x[late] - x[early]))
    assert shift < -5
    # A disc is bright and the background is dark, so the brightest pixels are discs in both frames.
    errors = {
        s: np.abs(np.roll(clip[early].max(-1), s, axis=1) - clip[late].max(-1)).mean() for s in (shift, 0, -shift)
    }
    assert errors[shift] < 0.5 * min(errors[0], errors[-shift])


def test_growing_discs_grow():
    """Sizes are periodic: with one disc's range being a factor 3, most of the discs are larger a little later."""
    grown = [
        np.diff((draw_clip(CLASSES.index(name), np.random.default_rng(7)).max(-1) > 130).mean((1, 2)))
        for name in ("growing", "shrinking")
    ]
    assert np.median(grown[0]) > 0 > np.median(grown[1])


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    make_synthetic(folder, train=8, val=8, seed=3, workers=2)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*.*") if path.suffix in (".mp4", ".csv")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_set_is_in_the_official_columns_and_balanced(small_set):
    for split, count in (("train", 8), ("val", 8)):
        rows = list(csv.DictReader((small_set / f"{split}.csv").open()))
        assert list(rows[0]) == ["label", "youtube_id", "time_start", "time_end", "split"]
        assert Counter(row["label"] for row in rows) == dict.fromkeys(CLASSES, count // 8)
        assert {row["split"] for row in rows} == {split}
        names = {f"{r['youtube_id']}_{int(r['time_start']):06}_{int(r['time_end']):06}.mp4" for r in rows}
        assert {path.name for path in (small_set / split).iterdir()} == names


def test_the_set_is_read_like_kinetics(small_set):
    records = load_records(small_set / "train.csv", root=small_set / "train")
    assert (len(records), records.classes, records.missing) == (8, tuple(sorted(CLASSES)), ())
    with open_video(records[0].path) as video:
        assert (len(video), video.height, video.width, video.fps) == (FRAMES, HEIGHT, WIDTH, 20)
        assert (video.codec, video.backend) == ("h264", "decord")


def test_videos_show_what_was_drawn(small_set):
    """The decoded frames of the first training video are those that its seed draws, but for the loss of H.264."""
    row = next(csv.DictReader((small_set / "train.csv").open()))
    path = next((small_set / "train").glob(f"{row['youtube_id']}*"))
    drawn = draw_clip(CLASSES.index(row["label"]), np.random.default_rng((3, 0, 0)))
    with open_video(path) as video:
        decoded = video.frames(range(FRAMES))
    assert np.abs(decoded.astype(int) - drawn).mean() < 8


def test_the_same_seed_gives_the_same_files_and_another_does_not(small_set, tmp_path):
    make_synthetic(tmp_path / "again", train=8, val=8, seed=3, workers=1)
    assert digests(tmp_path / "again") == digests(small_set)
    make_synthetic(tmp_path / "other", train=2, val=1, seed=4, workers=1)
    assert not set(digests(tmp_path / "other").values()) & set(digests(small_set).values())


def test_a_half_made_set_is_completed_and_a_complete_one_left_alone(small_set):
    before = digests(small_set)
    videos = sorted((small_set / "train").iterdir())
    times = {path: path.stat().st_mtime_ns for path in videos[1:]}
    videos[0].unlink()
    (small_set / "val.csv").unlink()
    make_synthetic(small_set, train=8, val=8, seed=3, workers=1)
    assert digests(small_set) == before
    assert {path: path.stat().st_mtime_ns for path in videos[1:]} == times


def test_a_folder_with_something_else_is_refused(small_set, tmp_path):
    with pytest.raises(DataError, match=r"something else than .*'seed': 5.*choose another folder"):
        make_synthetic(small_set, train=8, val=8, seed=5)
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="holds something else"):
        make_synthetic(tmp_path)


def test_neither_cue_alone_says_which_label():
    """Every (disc, pair of rings) comes up as often for each label that it allows: counted over all choices."""
    drawn = Counter(
        (label, *choose_cues(label, np.random.default_rng(seed)))
        for label in range(len(CUE_COLOURS))
        for seed in range(600)
    )
    assert len(drawn) == 4 * 2 * 3  # label, shade, the other colour
    assert all(abs(count - 100) < 50 for count in drawn.values())  # five standard deviations
    rings = {cues for _, _, cues in drawn}
    for pair in rings:  # both of its colours, and each of them with one shade of the disc only
        assert {(label, shade) for label, shade, cues in drawn if cues == pair} == {(pair[0], 0), (pair[1], 1)}
    assert rings == {(a, b) for a in range(4) for b in range(4) if a != b}


@pytest.mark.parametrize("distance", DISTANCES)
def test_cues_are_where_the_distance_says(distance):
    first, rings, opposite = DISTANCES[distance]
    for label, colour in enumerate(CUE_COLOURS.values()):
        clip = draw_cues(label, np.random.default_rng(label), distance=distance).astype(int)
        changed = np.abs(clip - clip[0 if first else 3]).sum(-1) > 150  # from a frame that shows the background alone
        seen = np.flatnonzero(changed.any((1, 2)))
        assert seen.tolist() == [*range(first, first + 3), *range(rings, rings + 3)]
        assert frames_apart(distance) == seen[3] - seen[2] + 1
        sides = [np.flatnonzero(changed[frame].any(0)) // 16 for frame in (first, rings)]
        assert len({*sides[0]}) == len({*sides[1]}) == 1
        assert (sides[0][0] != sides[1][0]) == opposite
        # The ring around the shade of the disc has the colour of the label: its pixels lie 5 to 6 from the centre.
        rows, columns = np.mgrid[0:32, 0:32]
        shade = clip[first][changed[first]].mean() > 128
        for row in (8, 24):
            distances = np.hypot(rows - row, columns - (8 + 16 * sides[1][0]))
            centre, ring = clip[rings][distances < 2].mean(), clip[rings][abs(distances - 5.5) < 0.6].mean(0)
            assert (np.abs(ring - colour).max() < 60) == ((centre > 128) == shade)


def test_the_context_set_is_read_and_the_same_seed_gives_the_same_files(tmp_path):
    options = {"task": "context", "distance": "time", "train": 4, "val": 2}
    for name, workers in (("one", 1), ("two", 2)):
        make_synthetic(tmp_path / name, workers=workers, **options)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    records = load_records(tmp_path / "one/train.csv", root=tmp_path / "one/train")
    assert records.classes == tuple(CUE_COLOURS)
    for record in records:
        with open_video(record.path) as video:
            frames = video.frames(range(len(video)))
            assert frames.shape == (8, 32, 32, 3)
    with pytest.raises(DataError, match="choose another folder"):
        make_synthetic(tmp_path / "one", **{**options, "distance": "near"})
