"""Frame indices against tables worked out with the published formulas."""

from __future__ import annotations

import numpy as np
import pytest

from gcvideo.data.sampling import Windows, random_clip, sample_rng, uniform_clips

# Each table: (num_frames, frames, stride, num_clips), then the clips. Worked out by running PySlowFast's
# get_start_end_idx and temporal_sampling (at 30 frames/s) and mmaction2's SampleFrames(test_mode=True).
PYSLOWFAST = {
    (300, 8, 8, 3): [
        [0, 9, 18, 27, 36, 45, 54, 63],
        [78, 87, 96, 105, 114, 123, 132, 141],
        [157, 166, 175, 184, 193, 202, 211, 220],
    ],
    (250, 4, 16, 3): [[0, 21, 42, 63], [62, 83, 104, 125], [124, 145, 166, 187]],
    (300, 8, 8, 1): [[0, 9, 18, 27, 36, 45, 54, 63]],
    (40, 8, 8, 2): [[0, 9, 18, 27, 36, 39, 39, 39]] * 2,  # shorter than the clip: the last frame stands still
    (1, 4, 8, 2): [[0, 0, 0, 0]] * 2,
}
PYSLOWFAST_STARTS = [0, 23, 47, 70, 94, 118, 141, 165, 188, 212]  # (300, 8, 8, 10)
PYSLOWFAST_OFFSET_STARTS = [0, 26, 52, 78, 104, 130, 156, 182, 208, 234]
MMACTION2 = {
    (300, 8, 8, 3): [
        [0, 8, 16, 24, 32, 40, 48, 56],
        [122, 130, 138, 146, 154, 162, 170, 178],
        [243, 251, 259, 267, 275, 283, 291, 299],
    ],
    (250, 4, 16, 3): [[0, 16, 32, 48], [100, 116, 132, 148], [201, 217, 233, 249]],
    (300, 8, 8, 1): [[121, 129, 137, 145, 153, 161, 169, 177]],
    (40, 8, 8, 2): [[0, 8, 16, 24, 32, 0, 8, 16]] * 2,  # shorter than the clip: it loops
    (5, 4, 2, 2): [[0, 2, 4, 1]] * 2,
    (1, 4, 8, 2): [[0, 0, 0, 0]] * 2,
}
MMACTION2_STARTS = [0, 27, 54, 81, 108, 135, 162, 189, 216, 243]


@pytest.mark.parametrize(("video", "clips"), PYSLOWFAST.items())
def test_pyslowfast_clips(video, clips):
    assert uniform_clips(*video).tolist() == clips


@pytest.mark.parametrize(("video", "clips"), MMACTION2.items())
def test_mmaction2_clips(video, clips):
    assert uniform_clips(*video, convention="mmaction2").tolist() == clips


def test_ten_clips_start_where_the_papers_say():
    assert uniform_clips(300, 8, 8, 10)[:, 0].tolist() == PYSLOWFAST_STARTS
    assert uniform_clips(300, 8, 8, 10, "pyslowfast_offset")[:, 0].tolist() == PYSLOWFAST_OFFSET_STARTS
    assert uniform_clips(300, 8, 8, 10, "mmaction2")[:, 0].tolist() == MMACTION2_STARTS


def test_pyslowfast_counts_strides_at_thirty_frames_a_second():
    clips = uniform_clips(250, 8, 8, 2, speed=25 / 30)
    assert clips.tolist() == [[0, 7, 14, 22, 29, 37, 44, 52], [98, 105, 113, 120, 128, 135, 143, 150]]


def test_pyslowfast_offset_takes_one_clip_from_the_middle():
    assert uniform_clips(300, 8, 8, 1, "pyslowfast_offset")[0].tolist() == [118, 127, 136, 145, 154, 163, 172, 181]


@pytest.mark.parametrize("convention", ["pyslowfast", "pyslowfast_offset", "mmaction2"])
@pytest.mark.parametrize("num_frames", [1, 2, 7, 63, 64, 65, 300])
def test_every_index_is_a_frame(convention, num_frames):
    clips = uniform_clips(num_frames, 8, 8, 10, convention)
    random = np.stack([random_clip(num_frames, 8, 8, sample_rng(0, 0, i), convention) for i in range(50)])
    for indices in (clips, random):
        assert indices.dtype == np.int64
        assert indices.min() >= 0
        assert indices.max() < num_frames


@pytest.mark.parametrize(("convention", "step", "last_start"), [("pyslowfast", 9, 35), ("mmaction2", 8, 36)])
def test_random_clips_cover_the_video_with_the_spacing_of_test_clips(convention, step, last_start):
    clips = np.stack([random_clip(100, 8, 8, sample_rng(0, 0, i), convention) for i in range(2000)])
    assert set(np.diff(clips).ravel().tolist()) == {step}
    assert set(clips[:, 0].tolist()) == set(range(last_start + 1))


def test_random_clip_at_a_target_frame_rate_spans_the_same_time():
    clip = random_clip(1000, 8, 8, sample_rng(0, 0, 0), speed=2.0)
    assert clip[-1] - clip[0] == pytest.approx(2 * 64 - 1, abs=1)


def test_sample_rng_depends_on_all_three_numbers_and_on_nothing_else():
    def draw(*key):
        return sample_rng(*key).random(4).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({tuple(draw(*key)) for key in [(1, 2, 3), (3, 2, 1), (1, 3, 2), (0, 2, 3), (1, 2, 4)]}) == 5


@pytest.mark.parametrize(
    ("windows", "stretch", "expected"),
    [
        (Windows(2, 1), (0, 5), [(0, 2), (1, 3), (2, 4), (3, 5)]),
        (Windows(2), (0, 6), [(0, 2), (2, 4), (4, 6)]),
        (Windows(), (0, 3.2), [(0, 1.6), (1.6, 3.2)]),  # as long as a clip
        (Windows(2), (1, 6.5), [(1, 3), (3, 5), (5, 6.5)]),  # half a window or more is left
        (Windows(2), (0, 4.5), [(0, 2), (2, 4)]),  # less is left
        (Windows(2, 1), (0, 0.7), [(0, 0.7)]),
        (Windows(2, 10), (0, 3), [(0, 2)]),
        (Windows(0.1, 0.1), (0, 0.3), [(0, 0.1), (0.1, 0.2), (0.2, 0.3)]),  # 0.3 / 0.1 is below 3 in floating point
    ],
)
def test_windows_cover_a_stretch_of_time(windows, stretch, expected):
    np.testing.assert_allclose(windows.cut(*stretch, clip=1.6), expected, atol=1e-9)
