"""Groups by folders and names, and splits that never divide one."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from gcvideo.fit.split import Groups, find_groups, folds, hold_out

CLASSES = ("jump", "run")
PERSONS = ["daria", "denis", "eli", "ido", "ira", "lena"]


def groups_of(paths: list[str], classes: tuple[str, ...] = CLASSES, **options: object) -> Groups:
    labels = np.array([classes.index(path.split("/")[0]) for path in paths])
    return find_groups([f"/data/{path}" for path in paths], labels, classes, **options)  # type: ignore[arg-type]


def each(pattern: str, **values: object) -> list[str]:
    """A path for each class and each combination of the values."""
    paths = [pattern.replace("{c}", name) for name in CLASSES]
    for key, several in values.items():
        paths = [path.replace("{" + key + "}", str(value)) for path in paths for value in several]  # type: ignore[attr-defined]
    return paths


@pytest.mark.parametrize(
    ("paths", "count", "by"),
    [
        (
            each("{c}/v_{c}_g{g}_c{k}.mp4", g=["01", "02", "07", "08", "25"], k=["01", "02"]),
            5,
            "file names up to number 1",
        ),
        (each("{c}/person{g}_clip{k}.mp4", g=range(3), k=range(3)), 3, "persons in file names"),
        (each("{c}/clip{k}-subject_{g}.mp4", g=range(3), k=range(3)), 3, "persons in file names"),
        (each("{c}/anna{g}/{k}.mp4", g=range(3), k=range(3)), 3, "sub-folders"),
        (each("{c}/{g}/day{k}/1.mp4", g=PERSONS, k=range(3)), 6, "sub-folders"),
        (each("{c}/raw/{g}/{k}.mp4", g=PERSONS, k=range(3)), 6, "sub-folders"),
        (each("{c}/S001C00{k}P{g}R00{k}A007.avi", g=["001", "003", "106"], k=range(1, 4)), 3, "persons of NTU's codes"),
        (each("{c}/GX0{k}{g}.MP4", g=["0101", "0102", "0115"], k=range(1, 4)), 3, "chapters of GoPro's recordings"),
        (each("{c}/match{g}_{k}.mp4", g="ABC", k=range(5)), 3, "file names without numbers and short tags"),
        (each("{c}/match_{g}_{k}.mp4", g="ABC", k=range(5)), 3, "file names without numbers"),
        (each("{c}/{g}_{c}.mp4", g=PERSONS), 6, "file names without numbers and short tags"),
        (each("{c}/{g}_{c}_f_cm_np{k}_le_{q}_{k}.avi", g=PERSONS, k=(1, 2), q=["bad", "med"]), 6, "file names without"),
        (each("{c}/VID_202103{g}_1010{k}.mp4", g=range(11, 18), k=range(10, 13)), 7, "file names up to number 1"),
        (each("{c}/{g}_000001_000011.mp4", g=[f"{i:011d}" for i in range(3)]), 3, "YouTube ids in file names"),
        (each("{c}/{k}{g}.mp4", k=["a1", "a2", "a3"], g=["", "_flip", " (1)"]), 6, "equal pictures and names"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_sources_are_found(paths: list[str], count: int, by: str) -> None:
    found = groups_of(paths)
    assert (len(set(found.numbers)), found.torn) == (count, [])
    assert found.shown_by.startswith(by)


@pytest.mark.parametrize(
    "paths",
    [
        [f"{name}/{name}_{k:03}.mp4" for name in CLASSES for k in range(20)],
        [f"{name}/{hashlib.md5(f'{name}{k}'.encode()).hexdigest()[:10]}.mp4" for name in CLASSES for k in range(40)],
        [f"{name}/IMG_{1000 + 50 * place + k}.MOV" for place, name in enumerate(CLASSES) for k in range(40)],
        ["jump/a.mp4", "run/b.mp4"],
        [*each("{c}/clip {k} final.mp4", k=range(9)), "jump/intro.mp4", "run/first try.mp4"],
    ],
    ids=["counted", "hashes", "a camera's", "one each", "counted but for one"],
)
def test_names_that_show_no_source_give_no_groups(paths: list[str]) -> None:
    found = groups_of(paths)
    assert found.shown_by == ""
    assert len(set(found.numbers)) == len(paths)


def test_equal_pictures_and_segments_of_a_file_are_one_group() -> None:
    found = groups_of(
        ["jump/q.mp4", "jump/q.mp4", "jump/x.mp4", "jump/y.mp4", "run/b.mp4", "run/c.mp4"], twins=[(3, 2)]
    )
    assert found.numbers.tolist() == [0, 0, 1, 1, 2, 3]


def test_a_wrong_label_does_not_hide_the_source() -> None:
    paths = each("{c}/v_{c}_g{g}_c{k}.mp4", g=["01", "02", "07", "08", "25"], k=["01", "02"])
    labels = np.array([CLASSES.index(path.split("/")[0]) for path in paths])
    labels[[3, 14]] = [1, 0]
    found = find_groups([f"/data/{path}" for path in paths], labels, CLASSES)
    assert len(set(found.numbers)) == 5


def test_a_folder_called_otherwise_than_its_class_is_no_source() -> None:
    paths = [
        f"{folder}/v_{folder}_g{g:02}_c{c:02}.avi"
        for folder in ("JumpRope", "PullUps")
        for g in (1, 2, 3, 4)
        for c in (1, 2)
    ]
    labels = np.repeat([0, 1], 8)
    groups = find_groups(paths, labels, ["JumpRope", "chin-ups"])
    assert "sub-folders" not in groups.shown_by
    assert all(groups.numbers[i] == groups.numbers[i + 1] for i in range(0, 16, 2))


def test_a_class_of_a_single_source_is_taken_apart_and_named() -> None:
    found = groups_of(
        [*each("{c}/day{g}_{k}.mp4", g=range(2), k=range(3))[:6], *(f"run/day7_{k}.mp4" for k in range(4))]
    )
    assert found.torn == [1]
    assert len(set(found.numbers)) == 2 + 4


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_held_out_groups_are_whole_and_leave_every_class(share: float) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    groups = rng.integers(0, 40, 300)
    held = hold_out(labels, groups, share, seed=3)
    assert not {*groups[held]} & {*groups[~held]}
    for k in range(5):
        assert share / 2 <= held[labels == k].mean() <= share + 0.25
    assert np.array_equal(held, hold_out(labels, groups, share, seed=3))
    assert not np.array_equal(held, hold_out(labels, groups, share, seed=4))


def test_a_class_is_never_held_out_whole() -> None:
    labels, groups = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 3, 3, 3, 4])
    held = hold_out(labels, groups, 0.25, seed=0)
    assert held[labels == 0].sum() == 1
    assert not held[labels > 0].any()


def test_folds_hold_each_group_once_and_a_share_of_each_class() -> None:
    groups = np.repeat(np.arange(20), 4)
    labels = np.repeat([0, 1], 40)
    fold = folds(labels, groups, 5, seed=0)
    assert all(len({*fold[groups == group]}) == 1 for group in range(20))
    assert all(np.bincount(fold[labels == k]).tolist() == [8] * 5 for k in (0, 1))
