"""Label videos with a checkpoint: ``gcvideo.load("ckpt.pt").predict("video.mp4")``."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from gcvideo.config import RunConfig, TestConfig
from gcvideo.data.records import Failure, RecordTable
from gcvideo.errors import CheckpointError, ConfigError, VideoError
from gcvideo.eval.evaluator import ensemble_views, view_outputs
from gcvideo.eval.metrics import DEFAULT_THRESHOLD, sigmoid, softmax
from gcvideo.eval.optimize import compile_network
from gcvideo.eval.predictions import VideoScores
from gcvideo.eval.trained import load_trained
from gcvideo.files import hash_file
from gcvideo.models.features import HEAD, FeatureNetwork
from gcvideo.predict.embedding import Embedding, Pool, Recipe, make_recipe
from gcvideo.predict.export import save_pretrained
from gcvideo.predict.exported import ExportedNetwork
from gcvideo.predict.inputs import Several, Video, input_views, open_frames
from gcvideo.predict.timeline import LIVE_WINDOWS, SlidingWindows, Timeline, Window, make_timeline
from gcvideo.video import FrameStream

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One label for a video: its name, its index, and its score in [0, 1]."""

    label: str
    index: int
    score: float


class Predictor:
    """A trained network with everything needed to label videos.

    Args:
        model: on its device, ready to run; see ``optimize_for_inference``.
        config: of the run that trained it.
        classes: class names in label order; where unknown, labels are called by their number.
        source: the checkpoint, for messages.

    Attributes:
        shows_layers: whether attention, Grad-CAM and feature vectors can be had: not of an exported file.
        thresholds: scores (K,) above which a class is a label, where ``model.multi_label`` gives several; else None.
    """

    def __init__(
        self, model: nn.Module, *, config: RunConfig, classes: Sequence[str] | None = None, source: str = ""
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.shows_layers = not isinstance(model, ExportedNetwork)
        self.classes = list(classes or map(str, range(config.model.num_classes)))
        self.source = source
        self.thresholds = np.full(len(self.classes), DEFAULT_THRESHOLD) if config.model.multi_label else None
        self.device: torch.device = next(model.parameters()).device
        self._networks: dict[tuple[str, bool], nn.Module] = {}  # for features, by layer and whether pooled

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint's network as a new folder to publish: config, weights as safetensors, and a model card.

        Raises:
            CheckpointError: the checkpoint is gone, or is an exported file.
            ConfigError: the folder holds something.
        """
        save_pretrained(load_trained(self.source, device="cpu"), folder)

    def describe(self) -> dict[str, str]:
        """The checkpoint: its path, its SHA-256 in hex, and the precision in which it computes."""
        precision = "bf16" if next(self.model.parameters()).dtype == torch.bfloat16 else "fp32"
        return {"path": os.path.abspath(self.source), "sha256": hash_file(self.source), "precision": precision}

    def predict(
        self, video: Video | Several, *, fps: float | None = None, top: int = 5, test: TestConfig | None = None
    ) -> Any:
        """The best labels of a video, best first; of a list of videos, a list of such lists in their order.

        The same frames give the same result, in whichever form they come:

            predictor.predict("holiday.mp4")
            predictor.predict(["a.mp4", "b.mp4"])                  # a list of results
            predictor.predict(open("holiday.mp4", "rb").read())    # the bytes of a file
            predictor.predict(open("holiday.mp4", "rb"))
            predictor.predict(frames, fps=25)                      # uint8 (T, H, W, 3), RGB
            predictor.predict(iter(frames), fps=25)

        Args:
            video: a path, of a file or a folder of frames; the content of a file as bytes; an open binary file, read
                from its beginning; a numpy array or torch tensor uint8 (T, H, W, 3), RGB from 0 to 255; an iterator of
                frames uint8 (H, W, 3), such as a camera loop that ends (arrays, tensors or PIL pictures); or a list or
                tuple of any of these.
            fps: frames per second of arrays, tensors, iterators and folders of frames. It may be left out where
                ``data.target_fps`` is not set, since then clips are cut by counting frames. Files tell their own rate.
            top: how many labels; of a network of several labels a video, all above their thresholds, or none.
            test: which views to look at; by default those that the run was tested with.

        Raises:
            VideoError: a file cannot be read, something is no video, frames have a wrong shape or type, or ``fps`` is
                missing.
        """
        videos = video if isinstance(video, list | tuple) else [video]
        results = [self.best(_readable(scores), top) for scores in self.score_files(videos, fps=fps, test=test)]
        return results if isinstance(video, list | tuple) else results[0]

    def best(self, scores: np.ndarray, top: int = 5) -> list[Prediction]:
        """The ``top`` labels of scores (K,), or those above their thresholds, best first; equal ones as the classes."""
        order = np.argsort(-scores, kind="stable")
        order = order[:top] if self.thresholds is None else order[(scores > self.thresholds)[order]]
        return [Prediction(self.classes[i], int(i), float(scores[i])) for i in order]

    def score_files(
        self,
        videos: Sequence[Video] | RecordTable,
        *,
        fps: float | None = None,
        test: TestConfig | None = None,
        workers: int = 0,
    ) -> Iterator[np.ndarray | Failure]:
        """Scores (K,) float32 in [0, 1] of many videos, in their order; a ``Failure`` for one that cannot be read.

        Args:
            videos: of any kind that ``predict`` takes; or records of files and of segments.
            fps: as in ``predict``.
            test: which views to look at, as in ``predict``. ``logits`` are turned into scores by a softmax.
            workers: processes that decode ahead, where all videos are paths.
        """
        test = test or self.config.test
        loader = input_views(videos, fps=fps, data=self.config.data, test=test, workers=workers)
        for views, logits in view_outputs(self.model, loader, test=test, data=self.config.data):
            found = views.failure or ensemble_views(views, logits, multi_label=self.config.model.multi_label)
            yield self._scores(found, test) if isinstance(found, VideoScores) else found

    def embed(
        self,
        video: Video | Several,
        *,
        fps: float | None = None,
        layer: str = HEAD,
        pool: Pool | None = None,
        window: float | None = None,
        step: float | None = None,
        test: TestConfig | None = None,
    ) -> Any:
        """The feature vector of a video, or of each of its clips or windows; of a list of videos, a list of these.

            vector = predictor.embed("holiday.mp4").vectors[0]                    # (C,), the mean over all views
            moments = predictor.embed("match.mp4", window=2.0, step=0.5)          # (windows, C), with starts and ends
            maps = predictor.embed("holiday.mp4", layer="res4", pool="none")      # (views, C, T', H', W')

        Args:
            video: as in ``predict``.
            fps: as in ``predict``; windows over arrays and iterators need it.
            layer: ``head``, what the classifier classifies; or the output of ``stem``, ``res2``, ``res3``, ``res4`` or
                ``res5``. Layers behind it are not computed. Own networks: see ``FeatureNetwork``.
            pool: ``video``: one vector, the mean over all views; ``clip``: one for each clip or window, the mean over
                its crops or views; ``none``: the feature map of each view. By default ``video``, of windows ``clip``.
            window: seconds; each window is treated as a video of its own, so one shorter than a clip of the network
                ends in a standing picture. By default as long as a clip, where ``step`` is given.
            step: seconds from the start of one window to that of the next; by default the length of a window.
            test: which views to take of a video or window; by default those that the run was tested with, of a window
                the centre crops of as many clips as fill it.

        Raises:
            VideoError: as in ``predict``.
            ConfigError: the network has no such layer, or the options contradict each other.
            CheckpointError: the vectors are not finite.
        """
        videos = list(video) if isinstance(video, list | tuple) else [video]
        recipe = make_recipe(self.config, layer=layer, pool=pool, window=window, step=step, test=test)
        results = [_readable(found) for found in self.embed_files(videos, recipe, fps=fps)]
        return results if isinstance(video, list | tuple) else results[0]

    def embed_files(
        self, videos: Sequence[Video] | RecordTable, recipe: Recipe, *, fps: float | None = None, workers: int = 0
    ) -> Iterator[Embedding | Failure]:
        """The feature vectors of many videos, in their order; a ``Failure`` for one that cannot be read.

        Args:
            videos: as in ``score_files``.
            recipe: from ``make_recipe``.
            fps: as in ``embed``.
            workers: processes that decode ahead, where all videos are paths.
        """
        network, data = self._network_for(recipe), self.config.data  # refuses before any video is opened
        views = input_views(videos, fps=fps, data=data, test=recipe.test, windows=recipe.windows, workers=workers)
        outputs = view_outputs(network, views, test=recipe.test, data=data)
        portions = itertools.groupby(outputs, key=lambda pair: pair[0].index)
        return (
            self._join([each.failure or recipe.combine(each, of_views) for each, of_views in own])
            for _, own in portions
        )

    def _join(self, portions: Sequence[Embedding | Failure]) -> Embedding | Failure:
        if failed := next((portion for portion in portions if isinstance(portion, Failure)), None):
            return failed
        whole = Embedding(*map(np.concatenate, zip(*portions, strict=True)))
        self._require_finite(whole.vectors, "vectors")
        return whole

    def _network_for(self, recipe: Recipe) -> nn.Module:
        key = recipe.layer, recipe.pool != "none"
        if key not in self._networks:
            if not self.shows_layers:
                raise ConfigError(f"{self.source}: shows no layers to embed by; give one checkpoint, no exported file")
            network = FeatureNetwork(getattr(self.model, "_orig_mod", self.model), key[0], pooled=key[1])
            self._networks[key] = compile_network(network) if hasattr(self.model, "_orig_mod") else network
        return self._networks[key]

    def timeline(
        self,
        source: Video | Several,
        *,
        fps: float | None = None,
        step: float | None = None,
        smooth: float = 2.0,
        min_length: float = 1.0,
        test: TestConfig | None = None,
        live: bool = False,
        on_window: Callable[[Window, FrameStream], bool | None] | None = None,
    ) -> Any:
        """What happens when, in a video of any length: a window slides over it, in bounded memory.

        Args:
            source: any video that ``predict`` takes; ``camera:N``; a stream (rtsp, http, https, rtmp, udp URL); a
                list gives a list of timelines. An open file such as ``sys.stdin.buffer`` and an iterator of frames are
                read as they come. Of a camera or a stream without an end, which is opened again when it breaks off, the
                newest 1024 windows are kept; see ``gcvideo.video.stream.FrameStream``.
            fps: frames per second of arrays, tensors, iterators and folders of frames, which need it here.
            step: seconds from one window to the next; by default half a window.
            smooth: seconds over which scores are averaged.
            min_length: seconds; shorter segments join a neighbour.
            test: size and crops of the windows; by default those of the run's test, but the centre crop alone.
            live: Ctrl-C ends the stream, as its end would, and each window is scored at once.
            on_window: called with each window as soon as it is scored, and the stream; True ends the stream.

        Raises:
            ConfigError: the network gives several labels a video, and a segment has one.
            VideoError: the source cannot be read at all. One that breaks off later gives what could be read, and
                ``problem`` says why.
        """
        if self.config.model.multi_label:
            raise ConfigError(f"timeline: its segments have one label, and {self.source} gives several (multi_label)")
        test = test or replace(self.config.test, crops=1)
        if isinstance(source, list | tuple):
            options: Any = {"fps": fps, "step": step, "smooth": smooth, "min_length": min_length, "live": live}
            return [self.timeline(one, test=test, on_window=on_window, **options) for one in source]
        with open_frames(source, fps=fps, frame_rate=self.config.data.frame_rate) as stream:
            windows: deque[Window] = deque(maxlen=LIVE_WINDOWS if stream.live else None)
            views = SlidingWindows(stream, fps=stream.fps, step=step, data=self.config.data, test=test)
            try:
                outputs = view_outputs(self.model, views, test=test, data=self.config.data, lag=0 if live else 1)
                for window, logits in outputs:
                    begin, end = window.spans[0].tolist()
                    windows.append(Window(begin, end, self._scores(ensemble_views(window, logits), test)))
                    if on_window is not None and on_window(windows[-1], stream):
                        break
            except KeyboardInterrupt:
                if not live or not windows:
                    raise
        kept, seen = list(windows), views.duration
        start = kept[0].start if stream.live else 0.0
        segments = make_timeline(kept, self.classes, duration=seen, start=start, smooth=smooth, min_length=min_length)
        return Timeline(segments, kept, seen, stream.problem, stream.dropped)

    def _scores(self, video: VideoScores, test: TestConfig) -> np.ndarray:
        """Scores (K,) in [0, 1] by the ensemble asked for; the mean of logits goes through softmax or sigmoid."""
        activation = sigmoid if self.config.model.multi_label else softmax
        scores: np.ndarray = activation(video.logits) if test.ensemble == "logits" else getattr(video, test.ensemble)
        self._require_finite(scores, "scores")
        return scores

    def _require_finite(self, values: np.ndarray, name: str) -> None:
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.source or 'the network'}: its {name} are not finite, so its weights are non-finite or too "
                "large; take another checkpoint of the run"
            )


def _readable(found: T | Failure) -> T:
    """The result of a video; a ``VideoError`` if it could not be read."""
    if isinstance(found, Failure):
        raise VideoError(found.path, found.reason)
    return found


def load(
    checkpoint: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    engine: str = "onnxruntime",
) -> Predictor:
    """Load a checkpoint or an exported file, ready to label videos.

    Args:
        checkpoint: a gcvideo checkpoint, the folder of a run, a file of ``gcvideo export`` (``.onnx`` or ``.pt2``), the
            folder of a published network, or ``hf:org/name`` (or ``hf:org/name@revision``) on the Hugging Face Hub.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        compile: compile the network: a slow start, then faster.
        engine: what runs an ONNX file: ``onnxruntime``, or ``openvino`` (CPU; ``pip install 'gcvideo[openvino]'``).

    Raises:
        CheckpointError: the file is missing, damaged, or does not fit.
    """
    network = load_trained(checkpoint, device=device, engine=engine)
    model, _ = network.for_inference(precision=precision, compile=compile)
    predictor = Predictor(model, config=network.config, classes=network.classes, source=str(network.path))
    predictor.thresholds = None if network.thresholds is None else np.array(network.thresholds)
    return predictor
