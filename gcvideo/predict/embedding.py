"""Feature vectors of videos: what a layer of the network makes of their views, averaged."""

from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from gcvideo.config import DataConfig, RunConfig, TestConfig
from gcvideo.data.dataset import VideoViews
from gcvideo.data.sampling import Windows
from gcvideo.errors import ConfigError
from gcvideo.models.features import HEAD

Pool = Literal["video", "clip", "none"]

USUAL_FPS = 30.0  # by which clips fill a window, where ``data.target_fps`` is not set


class Embedding(NamedTuple):
    """Feature vectors of a video.

    Attributes:
        vectors: float32 (V, C); feature maps (V, C, T', H', W') where nothing was pooled.
        starts: float64 (V,), seconds from the video's first frame: of the window, else of the first frame seen.
        ends: float64 (V,), seconds: of the window, else of the last frame seen.
    """

    vectors: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Recipe(NamedTuple):
    """What feature vectors are made of; see ``Predictor.embed``.

    Attributes:
        layer: of the network.
        pool: over which views to average.
        windows: each is treated as a video of its own; None: there are none.
        test: the views of each video or window.
    """

    layer: str
    pool: Pool
    windows: Windows | None
    test: TestConfig

    def describe(self, data: DataConfig) -> dict[str, Any]:
        """All that the vectors of a network depend on, as JSON values."""
        views = {"frames": data.frames, "stride": data.stride, "target_fps": data.target_fps, **asdict(self.test)}
        del views["ensemble"], views["views_per_batch"]
        window, step = self.windows or (None, None)
        return {"layer": self.layer, "pool": self.pool, "window": window, "step": step, "views": views}

    def combine(self, views: VideoViews, outputs: np.ndarray) -> Embedding:
        """The vectors of a video from the outputs (V, ...) of its views, whose means are taken in float64."""
        spans = views.spans.numpy()  # (clips, 2)
        if self.pool == "none":
            return Embedding(outputs, *spans.repeat(len(views.crops), axis=0).T)
        spans = spans.reshape(-1, self.test.clips if self.windows or self.pool == "video" else 1, 2)
        grouped = outputs.reshape(len(spans), -1, *outputs.shape[1:])
        vectors = grouped.mean(axis=1, dtype=np.float64).astype(np.float32)
        return Embedding(vectors, spans[..., 0].min(axis=1), spans[..., 1].max(axis=1))


def make_recipe(
    config: RunConfig,
    *,
    layer: str = HEAD,
    pool: Pool | None = None,
    window: float | None = None,
    step: float | None = None,
    test: TestConfig | None = None,
) -> Recipe:
    """What the feature vectors of a network are made of, with the defaults of its run; see ``Predictor.embed``.

    Raises:
        ConfigError: the settings contradict each other.
    """
    for name, seconds in (("window", window), ("step", step)):
        if seconds is not None and not 1e-3 <= seconds < np.inf:
            raise ConfigError(f"{name}: must be at least 1 ms, not {seconds:g} s")
    windows = None if window is None and step is None else Windows(window, step)
    pool = pool or ("clip" if windows else "video")
    if pool not in get_args(Pool):
        raise ConfigError(f"pool: {pool!r} is none of {', '.join(get_args(Pool))}")
    if windows and pool == "video":
        raise ConfigError("pool: video gives one vector a video, windows one each; leave out pool or the windows")
    clip = config.data.frames * config.data.stride / (config.data.target_fps or USUAL_FPS)
    filling = replace(config.test, clips=max(1, round((window or clip) / clip)), crops=1)
    return Recipe(layer, pool, windows, test or (filling if windows else config.test))
