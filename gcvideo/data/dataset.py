"""Map-style datasets: random training clips, and all views of a video for tests.

Neither raises for a bad video. Training fills the slot with the next good record and reports the failure; testing
reports the failure in the video's place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from gcvideo.config import DataConfig, TestConfig
from gcvideo.data.augment import ClipAugment, build_clip_augment
from gcvideo.data.bad_videos import Quarantine
from gcvideo.data.crops import crop_and_resize, random_box, resize_short_side, view_boxes
from gcvideo.data.records import Failure, RecordTable, VideoRecord, frames_between
from gcvideo.data.sampling import Windows, random_clip, sample_rng, uniform_clips
from gcvideo.data.worker_pool import Hold
from gcvideo.errors import ConfigError, DamagedVideoError, DataError, VideoError
from gcvideo.video import VideoReader, open_video, why_missing

# A sample's decoded frames may take this much memory; test frames beyond it are decoded and resized in portions.
MAX_DECODED_BYTES = 1 << 30

R = TypeVar("R")


class ClipBatch(NamedTuple):
    """Training clips of one video or of a micro-batch.

    Attributes:
        clips: uint8 (N, C, T, H, W); ``data.augment.clips_per_video`` of each video, one after the other.
        labels: int64 (N,); of a table of several labels a video (N, L), filled up with -1.
        indices: int64 (N,), of the records that the clips show.
        failures: of the records that could not be read and whose slots the next good records fill.
    """

    clips: Tensor
    labels: Tensor
    indices: Tensor
    failures: list[Failure]

    def pin_memory(self) -> ClipBatch:
        """The batch in page-locked memory, which GPUs copy from asynchronously."""
        return ClipBatch(self.clips.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory(), self.failures)


class VideoViews(NamedTuple):
    """What the views of one video are cut from.

    Attributes:
        frames: uint8 (C, U, H, W), the unique frames of all clips, the short side already resized.
        clips: int64 (num_clips, T), positions into U.
        crops: int64 (num_crops, 4), top, left, height, width.
        label: -1 where unknown; of a table of several labels a video all of them.
        index: of the record.
        id: of the record.
        failure: why the video could not be read; the tensors are empty then.
        spans: float64 (num_clips, 2), start and end of each clip, or of the window that it lies in, in seconds from the
            video's first frame.
    """

    frames: Tensor
    clips: Tensor
    crops: Tensor
    label: int | tuple[int, ...]
    index: int  # type: ignore[assignment]  # it hides tuple.index, which nobody needs here
    id: str
    failure: Failure | None
    spans: Tensor = torch.empty(0, 2, dtype=torch.float64)


def cut_clips(
    video: VideoReader, record: VideoRecord, *, data: DataConfig, augment: ClipAugment | None, rng: np.random.Generator
) -> Tensor:
    """Training clips of the part of an open video that a record means, all of whose frames are decoded by one call.

    Args:
        video: of the record.
        record: the video, or segment of one.
        data: which clips to cut.
        augment: from ``build_clip_augment``.
        rng: from ``sample_rng``; decides everything that is random.

    Returns:
        uint8 (K, C, T, H, W); in memory channels last, unless they are augmented.

    Raises:
        VideoError: this decoder cannot read it.
    """
    first, end = record.frame_range(video.times)
    speed = video.fps / data.target_fps if data.target_fps else 1.0
    numbers = [
        first + random_clip(end - first, data.frames, data.stride, rng, convention=data.convention, speed=speed)
        for _ in range(data.augment.clips_per_video)
    ]
    # A single clip is cut out as it is decoded.
    part = random_box(video.height, video.width, data=data, rng=rng) if len(numbers) == 1 else None
    decoded = video.frames(np.concatenate(numbers), part)  # (K * T, H, W, 3)
    clips = []
    for frames in np.split(decoded, len(numbers)):
        box = (0, 0, *part[2:]) if part else random_box(video.height, video.width, data=data, rng=rng)
        clip = crop_and_resize(frames, box, (data.crop, data.crop), flip=rng.random() < data.flip)
        clips.append(clip.permute(1, 2, 3, 0) if augment is None else augment(clip, rng))  # as they lie in memory
    stacked = torch.stack(clips)
    return stacked.permute(0, 4, 1, 2, 3) if augment is None else stacked


def cut_views(
    video: VideoReader, record: VideoRecord, *, data: DataConfig, test: TestConfig, windows: Windows | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames, clips, crops and spans of ``VideoViews``, of the part of an open video that a record means.

    Every frame is decoded once.
    """
    speed = video.fps / data.target_fps if data.target_fps else 1.0
    times = video.times - video.times[0]
    parts = window_spans(video, record, windows, data)
    clips = np.concatenate(
        [
            first + uniform_clips(end - first, data.frames, data.stride, test.clips, test.convention, speed)
            for first, end in (frames_between(times, *part) for part in parts.tolist())
        ]
    )
    ends = np.append(times[1:], times[-1] + 1 / video.fps)
    seen = np.column_stack([times[clips.min(axis=1)], ends[clips.max(axis=1)]])
    unique, positions = np.unique(clips, return_inverse=True)
    portion = max(1, MAX_DECODED_BYTES // (video.height * video.width * 3))
    resized = [
        resize_short_side(video.frames(unique[start : start + portion]), test.short_side, test.convention)
        for start in range(0, len(unique), portion)
    ]
    frames = torch.cat(resized, dim=1)
    crops = torch.from_numpy(view_boxes(frames.shape[2], frames.shape[3], test))
    spans = torch.from_numpy(seen if windows is None else parts.repeat(test.clips, axis=0))
    return frames, torch.from_numpy(positions.reshape(clips.shape)), crops, spans


def window_spans(video: VideoReader, record: VideoRecord, windows: Windows | None, data: DataConfig) -> np.ndarray:
    """Start and end, in seconds from the video's first frame, of the windows of a record; without windows, its own.

    Returns:
        float64 (W, 2).
    """
    span = record.span(video.times)
    clip = data.frames * data.stride / (data.target_fps or video.fps)
    return np.array([span]) if windows is None else windows.cut(*span, clip=clip)


class _VideoDataset:
    """Records, and which decoders may read each of them."""

    windows: Windows | None = None

    def __init__(self, records: RecordTable, *, data: DataConfig, quarantine: Quarantine) -> None:
        if missing := why_missing(data.backend):  # else every video would go to the second decoder
            raise ConfigError(f"data.backend: {missing}")
        self.records = records
        self.data = data
        self.quarantine = quarantine

    def __len__(self) -> int:
        return len(self.records)

    def _read(self, index: int, cut: Callable[[VideoReader, VideoRecord], R], hold: Hold, *, epoch: int = 0) -> R:
        """Open the video of a record and call ``cut(video, record)``, with a second decoder where the first one fails.

        Raises:
            VideoError: the record is known to be bad, is a folder of frames whose rate is needed, or no decoder could
                read it (with the first one's reason).
        """
        record = self.records[index]
        if self.quarantine.is_bad(index, epoch):
            raise VideoError(record.path, self.quarantine.failure(index).reason)
        hold(epoch * len(self.records) + index)
        seconds = {"data.target_fps": self.data.target_fps, "a segment": record.end, "a window": self.windows}
        needing = [what for what, value in seconds.items() if value is not None]
        backends = [self.data.backend, "decord" if self.data.backend == "pyav" else "pyav"]
        if self.quarantine.is_suspect(index, epoch):
            del backends[0]  # it killed a process
        errors = []
        for backend in backends:
            try:
                with open_video(record.path, backend=backend, frame_rate=self.data.frame_rate) as video:
                    if needing and not video.timed:
                        fix = f"{needing[0]} needs their rate: set data.frame_rate (--fps)"
                        raise VideoError(record.path, f"is a frame folder; {fix}")
                    return cut(video, record)
            except DamagedVideoError:
                raise  # another decoder might give frames and hide the damage
            except VideoError as error:
                errors.append(error)
            except MemoryError:
                errors.append(VideoError(record.path, "needs more memory than a worker process may use"))
        raise errors[0]


class ClipDataset(_VideoDataset):
    """Training clips. ``dataset[epoch, slot]`` is a pure function of (seed, epoch, slot) and the videos.

    The slot of a record that cannot be read is filled by the next good one in the order of the table (the first
    follows the last), cut with the slot's own randomness. A record that is known to be bad (see ``Quarantine``) gives
    the very same substitute.

    Args:
        records: every one labelled.
        data: which clips to cut; its list ``data.quarantine`` of bad videos is respected.
        seed: of the run.
        quarantine: file of bad videos, which are skipped; the loader appends to it. None: kept in memory only.

    Raises:
        DataError: a record has no label.
    """

    def __init__(
        self, records: RecordTable, *, data: DataConfig, seed: int, quarantine: str | Path | None = None
    ) -> None:
        known = Quarantine(records, quarantine, known=data.quarantine, training=True)
        super().__init__(records, data=data, quarantine=known)
        self.seed = seed
        self._augment = build_clip_augment(data)
        self._most_labels = int(records.labels.max(initial=1))
        unlabelled = np.flatnonzero(records.labels < 0)
        if len(unlabelled):
            raise DataError(
                f"{records.source}: {records[int(unlabelled[0])].id} has no label, which training needs "
                f"({len(unlabelled):,} of {len(records):,} have none): list path,label or make a folder for each class"
            )

    def __getitem__(self, key: tuple[int, int]) -> ClipBatch:
        return self.sample(*key)

    def sample(self, epoch: int, slot: int, hold: Hold = lambda index: None) -> ClipBatch:
        """The clips of a slot: record ``slot % len(dataset)``, once more for every full round.

        Args:
            epoch: from 0.
            slot: from 0.
            hold: called with ``epoch * len(records) + index`` of each record before it is read.

        Raises:
            DataError: no video can be read: something other than the videos is broken.
        """

        def cut(video: VideoReader, record: VideoRecord) -> Tensor:
            rng = sample_rng(self.seed, epoch, slot)  # the same for every decoder
            return cut_clips(video, record, data=self.data, augment=self._augment, rng=rng)

        failures: list[Failure] = []
        for offset in range(len(self)):
            index = (slot + offset) % len(self)
            try:
                clips = self._read(index, cut, hold, epoch=epoch)
            except VideoError as error:
                failures.append(Failure(self.records[index].id, error.path, error.reason))
            else:
                label = self.records[index].label
                if isinstance(label, tuple):
                    label = (*label, *[-1] * (self._most_labels - len(label)))
                labels, indices = torch.tensor([label] * len(clips)), torch.full((len(clips),), index)
                return ClipBatch(clips, labels, indices, failures)
        _, path, reason = failures[0]
        raise DataError(f"{self.records.source}: no video can be read, the first of them {path}: {reason}")


class ViewDataset(_VideoDataset):
    """All views of each video, from one decode in which every frame is decoded once.

    Args:
        records: labelled or not.
        data: length and stride of a clip, decoder.
        test: number and place of the views. One clip and one crop make the usual validation during training.
        windows: cut each video into windows, each of which has that many clips; None: the video is the only one.
    """

    def __init__(
        self, records: RecordTable, *, data: DataConfig, test: TestConfig, windows: Windows | None = None
    ) -> None:
        super().__init__(records, data=data, quarantine=Quarantine(records, known=data.quarantine))
        self.test = test
        self.windows = windows

    def __getitem__(self, index: int, hold: Hold = lambda index: None) -> VideoViews:
        """The views of a record; ``hold`` is called with its index before it is read."""
        record, cut = self.records[index], partial(cut_views, data=self.data, test=self.test, windows=self.windows)
        try:
            frames, clips, crops, spans = self._read(index, cut, hold)
            return VideoViews(frames, clips, crops, record.label, index, record.id, None, spans)
        except VideoError as error:
            failure, empty = Failure(record.id, error.path, error.reason), torch.empty(0)
            return VideoViews(empty, empty, empty, record.label, index, record.id, failure)

    def spans(self, index: int, hold: Hold = lambda index: None) -> np.ndarray | None:
        """The windows of a record without their frames; see ``window_spans``. None where it cannot be read."""
        try:
            return self._read(index, partial(window_spans, windows=self.windows, data=self.data), hold)
        except VideoError:
            return None


def make_views(views: VideoViews) -> Tensor:
    """Cut the views out of the frames of a video that could be read, on their device.

    Returns:
        uint8 (V, C, T, h, w); view ``clip x num_crops + crop`` is that crop of that clip.
    """
    clips, boxes = views.clips.tolist(), views.crops.tolist()
    cut = views.frames.new_empty(len(clips) * len(boxes), len(views.frames), len(clips[0]), *boxes[0][2:])
    places = itertools.product(clips, boxes)
    for target, (positions, (top, left, height, width)) in zip(cut, places, strict=True):  # target: (C, T, h, w)
        for step, position in enumerate(positions):
            # Whole rows at a time: a tenth of index_select's time on a CPU.
            target[:, step] = views.frames[:, position, top : top + height, left : left + width]
    return cut
