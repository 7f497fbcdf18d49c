"""The shared cases of videos that readers get wrong: each comes out right, or is refused with the true reason."""

import importlib
import json
import shutil
import sys

import pytest

pytestmark = pytest.mark.slow

CASES = [
    *("d1_from_avi.mp4", "d1_from_avi.mov", "d1_from_avi.mkv", "d1_from_h264.mp4", "d1_from_hevc.mp4"),
    *("d1_two_times_exchanged.mp4", "d2_joined.mp4", "d2_joined.mkv", "d2_sets_once_hevc.mp4", "d3_open_gop.mp4"),
    *("d4_hflip.mp4", "d4_hflip_frag.mp4", "d4_vflip.mp4", "d4_transpose.mp4", "d4_45_degrees.mp4", "d4_all_zero.mp4"),
    *("d4_all_zero_frag.mp4", "d4_of_movie.mp4", "d5_hevc_no_picture.mp4", "d6_size_change.mp4"),
    *("d7_two_descriptions.mp4", "d7_empty_sample.mp4", "d7_cut.flv", "d7_cut_raw.avi", "d7_encrypted_frag.mp4"),
    *("d7_no_movie_box.mp4", "d7_empty_edit_only.mp4", "rate_h264.avi", "x264_core142_444.mp4"),
]


@pytest.fixture(scope="module")
def cases(shared, tmp_path_factory):
    """The folder of the cases, what is expected of them, and the function that tells their faults."""
    if not shutil.which("ffmpeg") or not (shared / "cases").is_dir():
        pytest.skip("needs the ffmpeg command and the shared cases")
    folder = tmp_path_factory.mktemp("cases")
    sys.path.insert(0, str(shared / "cases"))
    try:
        importlib.import_module("make_video_cases").main(folder)
        checker = importlib.import_module("check_video_cases")
    finally:
        sys.path.pop(0)
    return folder, json.loads((folder / "expected.json").read_text()), checker.faults_of


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize("name", CASES)
def test_case(name, backend, cases):
    folder, expected, faults_of = cases
    assert not faults_of(folder / name, expected[name], backend)


def test_every_case_is_tested(cases):
    assert sorted(cases[1]) == sorted(CASES)
