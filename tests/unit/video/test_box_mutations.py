"""Changed boxes of sound files: the reader refuses them, or gives the frames that a decode of the whole file gives.

``GCVIDEO_MUTATIONS=2000`` runs the long version.
"""

import contextlib
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gcvideo.video import VideoError, open_video
from tests.boxes import decode_in_order, read_number
from tests.zoo import STREAMS

SOURCES = ("h264_b2_gop12.mp4", "h264_open_normal.mp4", "hevc_b2_open1.mp4")
EXAMPLES = int(os.environ.get("GCVIDEO_MUTATIONS", "25"))
TABLES = (b"stts", b"ctts", b"stss", b"stsc", b"stsz", b"stco", b"elst", b"tkhd", b"mvhd", b"mdhd")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutations")
    return folder, {name: STREAMS[name].make(folder).read_bytes() for name in SOURCES}


def check(path, indices, source) -> None:
    """Every frame that comes is that of a decode in order, or where lengths differ, one of its or the source's frames.

    libavformat takes a time scale above 2 ** 31 for a negative one, and ends after the first picture.
    """
    try:
        with open_video(path) as reader:
            count, shape = len(reader), (reader.height, reader.width)
            wanted = [index % count for index in indices]
            frames = reader.frames(wanted)
    except VideoError:
        return
    assert frames.shape == (len(wanted), *shape, 3)
    whole: list[np.ndarray] = []
    with contextlib.suppress(Exception):  # where no decoder reads the file there is nothing to compare with
        whole = decode_in_order(path)
    if not whole or whole[0].shape[:2] != shape:  # or where it is turned by the new matrix
        return
    if len(whole) != count:
        whole += decode_in_order(source)
    turned = [whole, [f[:, ::-1] for f in whole], [f[::-1] for f in whole], [f[::-1, ::-1] for f in whole]]
    for index, frame in zip(wanted, frames, strict=True):
        candidates = [view[index] for view in turned] if len(whole) == count else [f for view in turned for f in view]
        assert any(np.array_equal(frame, right) for right in candidates), (index, read_number(frame))


@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_tables_give_right_frames_or_an_error(data, files):
    folder, sources = files
    name = data.draw(st.sampled_from(SOURCES))
    content = bytearray(sources[name])
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from([kind for kind in TABLES if kind in content]))
        start = content.index(kind)
        size = int.from_bytes(content[start - 4 : start], "big")
        at = start + data.draw(st.integers(4, max(4, min(size, 400) - 5)))
        value = data.draw(
            st.one_of(st.integers(0, 40), st.sampled_from([2**16, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))
        )
        content[at : at + 4] = value.to_bytes(4, "big")
    path = folder / "changed.mp4"
    path.write_bytes(content)
    check(path, data.draw(st.lists(st.integers(0, 23), min_size=1, max_size=4)), folder / name)
