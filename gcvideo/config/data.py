"""Config of videos and clips: ``data.*``, ``data.augment.*``, and the views of a test: ``test.*``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gcvideo import distributed
from gcvideo.config.checks import check_ranges
from gcvideo.errors import ConfigError
from gcvideo.files import read_yaml

# Values of ``data.augment`` by the name of the preset.
AUGMENT_PRESETS: dict[str, dict[str, Any]] = read_yaml(__file__, "augment.yaml")


@dataclass(kw_only=True)
class SplitConfig:
    """Videos of one split.

    Attributes:
        annotation: official Kinetics CSV, ``path label`` list, folder of class folders, index, folder of tar shards, or
            the official lists of UCF101, HMDB51 or Something-Something V2.
        root: folder that the annotation's paths or ids lie in. Default: the annotation's own folder.
    """

    annotation: str | None = None
    root: str | None = None


@dataclass(kw_only=True)
class AugmentConfig:
    """Augmentation of training clips; everything but the crop is off by default.

    "MViT" means the recipe in PySlowFast's MVIT_B_16x4_CONV.yaml. See gcvideo.data.augment. Sets of values have names,
    ``AUGMENT_PRESETS``: in a config, ``augment: strong``, or ``augment: {preset: strong, erase: 0.5}`` with own values.

    Attributes:
        crop: short_side (scale the short side to a random length, ``data.short_side``, then crop a random square) or
            inception (a box of random area and aspect ratio, Szegedy et al. 2015).
        crop_area: inception: smallest and largest area of the box as a fraction of the frame, in (0, 1].
        crop_ratio: inception: smallest and largest aspect ratio, width over height.
        rand_augment: RandAugment (Cubuk et al. 2020): operations per clip; 0: off. MViT: 4.
        rand_magnitude: magnitude of RandAugment's operations, 0 to 30. MViT: 7.
        color_jitter: largest change of brightness, contrast, saturation (0 or more) and hue (at most 0.5), as in
            torchvision; customary without RandAugment: 0.4 for the first three.
        gamma: pixels in [0, 1] are raised to a power between 1 / (1 + gamma) and 1 + gamma, brighter as often as not;
            0: off.
        erase: probability, in [0, 1], that a box of 2 to 33 % of the frame is erased (Zhong et al. 2020). MViT: 0.25.
        mixup: parameter of the Beta distribution of mixup (Zhang et al. 2018); 0: off. MViT: 0.8.
        cutmix: parameter of the Beta distribution of cutmix (Yun et al. 2019); 0: off. MViT: 1.0. With both, one of
            them is chosen for each batch.
        mix_chance: probability, in [0, 1], that a batch is mixed by mixup or cutmix.
        clips_per_video: repeated augmentation (Hoffer et al. 2020): clips cut from each opened video. A batch keeps its
            number of clips and holds fewer videos; an epoch still opens each video once. MViT: 2.
        class_balanced: every class equally often in each epoch (Kang et al. 2020), for small, unbalanced sets.
        custom: dotted path "module:name" of your own augmentation, applied last: a function of a clip, uint8 tensor
            (C, T, H, W), and a ``numpy.random.Generator`` to draw from, that returns such a clip. Default: none.
    """

    crop: Literal["short_side", "inception"] = "short_side"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    rand_augment: int = 0
    rand_magnitude: int = 9
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    gamma: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_chance: float = 1.0
    clips_per_video: int = 1
    class_balanced: bool = False
    custom: str | None = None

    def __post_init__(self) -> None:
        check_ranges("data.augment", self)
        for name, (low, high) in {"crop_area": self.crop_area, "crop_ratio": self.crop_ratio}.items():
            if low > high:
                raise ConfigError(f"data.augment.{name}: [{low:g}, {high:g}] must rise")
        if self.color_jitter[3] > 0.5:
            raise ConfigError(f"data.augment.color_jitter: the hue must be at most 0.5, is {self.color_jitter[3]:g}")


@dataclass(kw_only=True)
class DataConfig:
    """Videos, clip sampling, crops and decoding.

    Attributes:
        train: videos to train on.
        val: videos to validate on.
        test: videos to test on. Default: the val split.
        dataset: dotted path "module:name" of training clips of your own making, instead of ``train``: a subclass of
            ``gcvideo.data.dataset.ClipDataset``, called as ``name(data=..., seed=...)`` with this section and the run's
            seed. ``gcvideo.prepare.motion:MotionClips``: procedural motion. Default: the videos of ``train``.
        classes: text file with one class name per line, in label order, or kinetics400, kinetics600 or kinetics700.
            Default: the sorted class names of the train split.
        about: class name -> what it shows, in a line, which reports print beside its accuracy.
        format: format of the annotations: auto (what they look like), kinetics, list, folders, index, ucf101, hmdb51,
            something_something, charades, or your own reader as a dotted path "my_format:read"; see
            gcvideo.data.annotations.load_records.
        split: which official split of a data set that has several, from 1 (UCF101, HMDB51).
        frames: frames of a clip (the first 8 of "8x8").
        stride: distance between the frames of a clip, in frames (the second 8 of "8x8").
        convention: where training clips start and how their frames are spaced: pyslowfast, pyslowfast_offset or
            mmaction2; see the table in gcvideo.data.sampling. For tests: ``test.convention``.
        target_fps: frame rate at which strides are counted, for videos of every rate (PySlowFast: 30). Default: each
            video's own rate.
        frame_rate: frames per second of videos that are folders of pictures, which tell none. Default: unknown, so
            that clips are cut by counting frames; segments in seconds and ``data.target_fps`` need it.
        crop: height and width of training clips, in pixels.
        short_side: smallest and largest length of the short side, in pixels, before the random training crop.
        flip: probability, in [0, 1], of a horizontal flip.
        augment: augmentation of training clips; everything but the crop is off by default. "MViT" means the recipe in
            PySlowFast's MVIT_B_16x4_CONV.yaml. The name of a preset, ``augment: strong``, stands for its values, over
            which others may be set: ``augment: {preset: strong, erase: 0.5}``.
        mean: mean of each RGB channel, for pixels in [0, 1]. Default: PySlowFast's values for Kinetics.
        std: standard deviation of each RGB channel, for pixels in [0, 1]. Default: PySlowFast's values for Kinetics.
        quarantine: list of bad videos to leave out from the start: the output of ``gcvideo prepare verify``, or
            ``quarantine.jsonl`` of an earlier run. In training the next good video takes the place of each; in a test
            they count as failed. Rows of the annotation that it names, and that would be an error, are left out.
        backend: decoder: auto (decord where it reads a file correctly, else PyAV), decord or pyav;
            torchcodec, of older runs, is read as auto, which gives the same frames.
        workers: decoding processes of each process; 0: decode in the main process. auto: one for each core that the
            process may use, which are those of its machine or job divided among the processes there.
        video_timeout: time limit for decoding one video, in seconds; then its worker process is killed and the video
            quarantined.
        worker_memory: memory limit of one worker process, in GiB; a video that needs more is refused.
    """

    train: SplitConfig = field(default_factory=SplitConfig)
    val: SplitConfig = field(default_factory=SplitConfig)
    test: SplitConfig = field(default_factory=SplitConfig)
    dataset: str | None = None
    classes: str | None = None
    about: dict[str, str] = field(default_factory=dict)
    format: str = "auto"
    split: int = 1
    frames: int = 8
    stride: int = 8
    convention: Literal["pyslowfast", "pyslowfast_offset", "mmaction2"] = "pyslowfast"
    target_fps: float | None = None
    frame_rate: float | None = None
    crop: int = 224
    short_side: tuple[int, int] = (256, 320)
    flip: float = 0.5
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    quarantine: str | None = None
    backend: Literal["auto", "decord", "pyav", "torchcodec"] = "auto"
    workers: int | Literal["auto"] = "auto"
    video_timeout: float = 60.0
    worker_memory: float = 8.0

    def __post_init__(self) -> None:
        check_ranges("data", self)
        self.backend = "auto" if self.backend == "torchcodec" else self.backend
        low, high = self.short_side
        if self.augment.crop == "short_side" and not self.crop <= low <= high:
            raise ConfigError(f"data.short_side: [{low}, {high}] must rise, from data.crop ({self.crop}) or more")
        if self.target_fps is not None and self.convention == "mmaction2":
            raise ConfigError("data.target_fps: belongs to PySlowFast's conventions; data.convention is mmaction2")

    @property
    def worker_count(self) -> int:
        """Decoding processes of this process."""
        return distributed.cores() if self.workers == "auto" else self.workers


@dataclass(kw_only=True)
class TestConfig:
    """Multi-view test: ``clips`` x ``crops`` views of each video.

    Attributes:
        clips: clips per video, spread uniformly in time.
        crops: spatial crops per clip: 1 (centre), 3 (along the longer side) or 5.
        short_side: length to which the short side is scaled, in pixels.
        crop: height and width of a view, in pixels; at most ``short_side``.
        convention: where the clips lie: pyslowfast, pyslowfast_offset or mmaction2; see
            gcvideo.data.sampling.uniform_clips.
        ensemble: how the views' scores are combined: softmax (mean of probabilities), logits (mean) or max.
        whole_frame: the "fast" protocol: the whole frame once instead of ``crops`` crops. Cheaper, but not the
            published protocol: report its accuracy separately.
        views_per_batch: views in one forward pass. Default: 30 on a GPU; on a CPU 3, or 1 if they are large.
    """

    __test__ = False  # keeps pytest from collecting the class

    clips: int = 10
    crops: Literal[1, 3, 5] = 3
    short_side: int = 256
    crop: int = 256
    convention: Literal["pyslowfast", "pyslowfast_offset", "mmaction2"] = "pyslowfast"
    ensemble: Literal["softmax", "logits", "max"] = "softmax"
    whole_frame: bool = False
    views_per_batch: int | None = None

    def __post_init__(self) -> None:
        check_ranges("test", self)
        if self.crop > self.short_side:
            raise ConfigError(f"test.crop: {self.crop} does not fit in test.short_side ({self.short_side})")
