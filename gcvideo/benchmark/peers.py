"""Other toolkits: how they read a training clip and a test video, train and test a network, and their blocks.

They are here to be measured against. Each reader is written from its toolkit's documented steps and does what that data
pipeline does for one sample in one process. Where a toolkit resizes with OpenCV, torch's uint8 kernel without
antialiasing does it here, which costs about the same.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gcvideo.benchmark.harness import Contender
from gcvideo.benchmark.workloads import STEADY_LR
from gcvideo.config import TestConfig
from gcvideo.data.crops import crop_and_resize, crop_boxes
from gcvideo.data.sampling import uniform_clips
from gcvideo.layers import ContextBlock, NonLocalBlock
from gcvideo.video import open_video
from gcvideo.video.reader import Mp4Video

NAME = "pytorchvideo"  # of the contender that is its Slow-R50 in plain float32
MEAN, STD = 0.45, 0.225


class Clip(NamedTuple):
    """The training clip that every toolkit is asked for: the same frames, and the same part of them.

    Attributes:
        path: the video.
        indices: (T,) frame numbers.
        fps: of the video, for toolkits that count in seconds.
        height: of its frames.
        box: top, left, height, width in source pixels.
        size: side of the result.
        flip: whether it is mirrored, as every other one is in training.
    """

    path: str
    indices: np.ndarray
    fps: float
    height: int
    box: tuple[int, int, int, int]
    size: int
    flip: bool


class Views(NamedTuple):
    """The test views that every toolkit is asked for.

    Attributes:
        path: the video.
        num_frames: of the video.
        fps: of the video, for toolkits that count in seconds.
        test: clips, crops, and side of a view; the clips have 8 frames with a stride of 8.
    """

    path: str
    num_frames: int
    fps: float
    test: TestConfig


def all_views(path: str, test: TestConfig) -> Views:
    """The views of a video, which is opened for its length."""
    with open_video(path) as video:
        return Views(path, len(video), video.fps, test)


def mmaction2_clip(clip: Clip) -> np.ndarray:
    """mmaction2's SlowOnly recipe: DecordInit, SampleFrames, DecordDecode, Resize, RandomResizedCrop, Resize, Flip,
    FormatShape (configs/recognition/slowonly). Normalisation happens on the device, as ours does.

    Returns:
        uint8 (1, 3, T, H, W).
    """
    source = io.BytesIO(Path(clip.path).read_bytes())
    frames = [_resize(frame, _short_side(frame, 256)) for frame in _decord_frames(source, clip.indices)]
    ratio = frames[0].shape[0] / clip.height
    top, left, box_height, box_width = (round(value * ratio) for value in clip.box)
    frames = [frame[top : top + box_height, left : left + box_width] for frame in frames]
    step = -1 if clip.flip else 1
    frames = [np.ascontiguousarray(_resize(frame, (clip.size, clip.size))[:, ::step]) for frame in frames]
    return np.ascontiguousarray(np.stack(frames)[None].transpose(0, 4, 1, 2, 3))


def mmaction2_views(video: Views) -> np.ndarray:
    """mmaction2's test recipe: SampleFrames (10 clips), DecordDecode, Resize, ThreeCrop, FormatShape.

    Returns:
        uint8 (clips * crops, 3, T, size, size).
    """
    clips, crops, size = video.test.clips, video.test.crops, video.test.crop
    indices = uniform_clips(video.num_frames, 8, 8, clips, convention="mmaction2").ravel()
    source = io.BytesIO(Path(video.path).read_bytes())
    frames = [_resize(frame, _short_side(frame, size)) for frame in _decord_frames(source, indices)]
    boxes = crop_boxes(frames[0].shape[0], frames[0].shape[1], size, crops, "mmaction2").tolist()
    cut = [frame[top : top + size, left : left + size] for top, left, _, _ in boxes for frame in frames]
    views = np.stack(cut).reshape(crops, clips, 8, size, size, 3)
    return np.ascontiguousarray(views.transpose(1, 0, 5, 2, 3, 4).reshape(clips * crops, 3, 8, size, size))


def pytorchvideo_clip(clip: Clip) -> Tensor:
    """pytorchvideo's EncodedVideo, as its LabeledVideoDataset reads it, with the transforms of its classification
    tutorial.

    They are UniformTemporalSubsample(8), x / 255, Normalize, RandomShortSideScale, RandomCrop, RandomHorizontalFlip;
    written out here because ``pytorchvideo.transforms`` does not import with current torchvision. Sound is left alone.

    Returns:
        float32 (3, T, H, W).
    """
    from pytorchvideo.data.encoded_video import EncodedVideo

    rate = Fraction(clip.fps).limit_denominator(1001)
    start = int(clip.indices[0]) / rate
    end = start + int(clip.indices[-1] - clip.indices[0] + 8) / rate
    with contextlib.closing(EncodedVideo.from_path(clip.path, decode_audio=False)) as video:
        frames: Tensor = video.get_clip(start, end)["video"]  # (3, about 64, H, W) float32
    picked = torch.linspace(0, frames.shape[1] - 1, len(clip.indices)).long()
    frames = (frames.index_select(1, picked) / 255.0 - MEAN) / STD
    scale = clip.size / clip.box[2]
    height, width = (round(side * scale) for side in frames.shape[2:])
    frames = F.interpolate(frames, size=(height, width), mode="bilinear", align_corners=False)
    top = min(round(clip.box[0] * scale), height - clip.size)
    left = min(round(clip.box[1] * scale), width - clip.size)
    cut = frames[:, :, top : top + clip.size, left : left + clip.size]
    return cut.flip(-1) if clip.flip else cut.contiguous()


def libav_clip(clip: Clip) -> Tensor:
    """The plain way with libav: seek to the key frame, decode everything up to the last wanted frame, convert the
    wanted ones; then our own crop and resize, so that only the reading differs.

    Returns:
        uint8 (3, T, H, W).
    """
    frames = libav_frames(clip.path, clip.indices, clip.fps)
    return crop_and_resize(np.stack(frames), clip.box, (clip.size, clip.size), flip=clip.flip)


def libav_frames(path: str, indices: np.ndarray, fps: float) -> list[np.ndarray]:
    """Frames by index (constant frame rate), through PyAV."""
    import av
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    found: dict[int, np.ndarray] = {}
    wanted, last = set(indices.tolist()), int(indices.max())
    with av.open(path) as container:
        stream: Any = container.streams.video[0]
        stream.thread_count = 1
        container.seek(round(int(indices.min()) / fps / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            index = round(float(frame.pts * stream.time_base) * fps)
            if index in wanted:
                found[index] = reformatter.reformat(frame, format="rgb24").to_ndarray()
            if index >= last:
                break
    return [found[index] for index in indices.tolist()]


def bare_decode(clip: Clip) -> Callable[[], None] | None:
    """The bound of reading a clip, ready to be timed: decode the pictures that the clip needs, and convert its frames.

    Which pictures these are, and their bytes, are found beforehand. Nothing is checked, copied, cropped or resized.
    Only MP4 files of H.264 and HEVC can be planned so; None for others.
    """
    import av
    from av.video.reformatter import VideoReformatter

    with open_video(clip.path, backend="pyav") as video:
        source = video._source
        if not isinstance(source, Mp4Video):
            return None
        data, track = source.needed(clip.indices), source.track
    wanted, packets = {*track.table.order[clip.indices].tolist()}, list[av.Packet]()
    for sample, piece in data.items():
        packets.append(av.Packet(bytes(piece)))
        packets[-1].pts = sample

    def decode() -> None:
        codec: Any = av.CodecContext.create(track.info.codec, "r")
        codec.extradata, codec.thread_count, reformatter = track.config, 1, VideoReformatter()
        for packet in [*packets, None]:
            for frame in codec.decode(packet):
                if frame.pts in wanted:
                    reformatter.reformat(frame, format="rgb24", interpolation="BILINEAR", threads=1)

    return decode


def decord_clip(clip: Clip) -> Tensor:
    """decord as its README shows it, from a path and with one thread; then our own crop and resize.

    Returns:
        uint8 (3, T, H, W).
    """
    frames = _decord_frames(clip.path, clip.indices)
    return crop_and_resize(frames, clip.box, (clip.size, clip.size), flip=clip.flip)


def per_view_video(video: Views) -> list[Tensor]:
    """A dataset item for each view, as in PySlowFast (slowfast/datasets/kinetics.py with the pyav backend): each opens
    the video, decodes its clip to RGB, subsamples, normalises in float, scales the short side and crops.

    Returns:
        clips * crops float32 (3, T, size, size).
    """
    views = []
    clips, crops, size = video.test.clips, video.test.crops, video.test.crop
    for indices in uniform_clips(video.num_frames, 8, 8, clips):
        for crop in range(crops):
            span = np.arange(indices[0], min(indices[0] + 63, video.num_frames - 1) + 1)
            frames = torch.as_tensor(np.stack(libav_frames(video.path, span, video.fps)))
            frames = frames.index_select(0, torch.linspace(0, len(frames) - 1, 8).long())
            frames = (((frames.float() / 255.0) - MEAN) / STD).permute(3, 0, 1, 2)  # (3, T, H, W)
            height, width = frames.shape[2:]
            scaled = (height * size // min(height, width), width * size // min(height, width))
            frames = F.interpolate(frames, size=scaled, mode="bilinear", align_corners=False)
            top, left, _, _ = crop_boxes(*scaled, size, crops)[crop].tolist()
            views.append(frames[:, :, top : top + size, left : left + size])
    return views


def _decord_frames(source: str | io.BytesIO, indices: np.ndarray) -> np.ndarray:
    """All frames in one call, in sampling order, with one thread."""
    import decord

    batch = decord.VideoReader(source, num_threads=1).get_batch(indices)
    # A torch tensor where another package has set decord's bridge.
    return batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)


def _short_side(frame: np.ndarray, side: int) -> tuple[int, int]:
    scale = side / min(frame.shape[:2])
    return int(frame.shape[0] * scale + 0.5), int(frame.shape[1] * scale + 0.5)


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, without antialiasing, as mmcv.imresize; frames of the right size stay as they are."""
    if frame.shape[:2] == size:
        return frame
    image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    return F.interpolate(image, size=size, mode="bilinear")[0].permute(1, 2, 0).numpy()


def slow_r50(frames: int, crop: int) -> nn.Module:
    """The network of pytorchvideo's ``create_resnet``; its head pools a fixed number of positions.

    Args:
        frames: T of the clips.
        crop: H and W of the clips.
    """
    from pytorchvideo.models.resnet import create_resnet

    side = -(-crop // 32)
    network: nn.Module = create_resnet(
        model_depth=50, stem_conv_kernel_size=(1, 7, 7), head_pool_kernel_size=(frames, side, side)
    )
    return network


def training_step(clips: Tensor, device: torch.device) -> Contender:
    """One step in float32 with torch's default SGD, from uint8 clips (N, 3, T, H, W) to updated weights."""
    clips = clips.to(device)
    labels = torch.arange(len(clips), device=device) % 400
    network = slow_r50(clips.shape[2], clips.shape[-1]).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=STEADY_LR, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network((clips.float() / 255 - MEAN) / STD), labels).backward()
        optimizer.step()

    return step


@torch.no_grad()
def classify_video(network: nn.Module, video: str, device: torch.device, test: TestConfig) -> np.ndarray:
    """Mean softmax (K,) of a video's views, with one decode and one forward pass a view."""
    views = per_view_video(all_views(video, test))
    scores = [network(view[None].to(device)).softmax(dim=1)[0] for view in views]
    return torch.stack(scores).mean(dim=0).cpu().numpy()


class PortedContextBlock(nn.Module):
    """The GC block of xvjiarui/GCNet with every 2D layer turned into its 3D counterpart and nothing else changed."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = channels // reduction
        self.conv_mask = nn.Conv3d(channels, 1, kernel_size=1)
        self.channel_add_conv = nn.Sequential(
            nn.Conv3d(channels, hidden, kernel_size=1),
            nn.LayerNorm([hidden, 1, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv3d(hidden, channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> the same shape."""
        n, c = x.shape[:2]
        values = x.reshape(n, c, -1).unsqueeze(1)  # (N, 1, C, P)
        mask = self.conv_mask(x).reshape(n, 1, -1).softmax(2).unsqueeze(-1)  # (N, 1, P, 1)
        context = (values @ mask).reshape(n, c, 1, 1, 1)
        return x + self.channel_add_conv(context)

    def copy_from(self, block: ContextBlock) -> "PortedContextBlock":
        """Take the weights of gcvideo's block; the bias of the mask, which softmax removes, stays."""
        copy_weights([w for name, w in self.named_parameters() if name != "conv_mask.bias"], list(block.parameters()))
        return self


def pytorchvideo_non_local(block: NonLocalBlock) -> nn.Module:
    """pytorchvideo's block, without sub-sampling, with the weights of ours (embedded Gaussian)."""
    from pytorchvideo.layers.nonlocal_net import create_nonlocal

    peer: nn.Module = create_nonlocal(dim_in=block.out.out_features, dim_inner=block.inner, instantiation="softmax")
    names = ("conv_theta", "conv_phi", "conv_g", "conv_out", "norm")  # in the order of gcvideo's block
    copy_weights([weight for name in names for weight in getattr(peer, name).parameters()], list(block.parameters()))
    return peer


def copy_weights(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> None:
    """Copy weights in order; linear layers and 1 x 1 x 1 convolutions differ in the number of axes only."""
    with torch.no_grad():
        for target, source in zip(theirs, ours, strict=True):
            target.copy_(source.reshape(target.shape))
