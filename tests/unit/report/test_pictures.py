"""Attention maps, Grad-CAM and the pictures made of them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gcvideo.config import ContextConfig, ModelConfig
from gcvideo.layers import record_attention
from gcvideo.models.resnet3d import build_model
from gcvideo.predict.predictor import load
from gcvideo.report.maps import (
    MIDDLE,
    Place,
    explain,
    explain_video,
    grad_cam,
    map_of_query,
    places,
    query_sheet,
    resize_maps,
    scaled,
)
from gcvideo.report.pictures import (
    colour,
    data_uri,
    moving_picture,
    overlay,
    ringed,
    save_animation,
    save_picture,
    sheet,
)
from tests.tiny import tiny_checkpoint
from tests.videos import moving_frames, write_video


def network(kind: str) -> Any:
    torch.manual_seed(0)
    context = ContextConfig(kind=kind, stages={"res3": "all", "res5": [1]})  # type: ignore[arg-type]
    return build_model(ModelConfig(depth=18, width=4, num_classes=3, context=context)).eval()


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randn(2, 3, 4, 64, 48, generator=torch.Generator().manual_seed(1))


def attention_maps(model: nn.Module, clips: torch.Tensor, query: Place = MIDDLE) -> dict[str, torch.Tensor]:
    with torch.no_grad(), record_attention(model) as traces:
        model(clips)
    return {name: map_of_query(trace, query) for name, trace in traces.items() if trace.attention is not None}


def test_a_context_block_has_one_map_that_sums_to_one(clips: torch.Tensor) -> None:
    maps = attention_maps(network("gc"), clips)
    assert list(maps) == ["res3.0.context", "res3.1.context", "res5.1.context"]
    assert maps["res3.0.context"].shape == (2, 4, 8, 6)
    for attention in maps.values():
        torch.testing.assert_close(attention.sum(dim=(1, 2, 3)), torch.ones(2))
    assert torch.equal(attention_maps(network("gc"), clips, query=(0, 0, 0))["res3.0.context"], maps["res3.0.context"])


def test_a_non_local_block_has_a_map_for_each_query(clips: torch.Tensor) -> None:
    model = network("nl")
    model.res3[0].context.theta.weight.data.mul_(30)  # so that queries differ visibly
    first, last = (attention_maps(model, clips, query=(q, q, q))["res3.0.context"] for q in (0.0, 1.0))
    assert not torch.allclose(first, last)
    torch.testing.assert_close(first.sum(dim=(1, 2, 3)), torch.ones(2))


def test_average_pooling_attends_to_nothing(clips: torch.Tensor) -> None:
    assert attention_maps(network("se"), clips) == {}


class PlantedNet(nn.Module):
    """Class 0 sees channel 0 of the features, class 1 sees channel 1; each channel is bright in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv3d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]])[..., None, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).mean(dim=(2, 3, 4))


def test_grad_cam_finds_what_the_class_looks_at() -> None:
    x = torch.zeros(1, 3, 4, 8, 8)
    x[0, 0, 1, 2, 3] = 5
    x[0, 1, 3, 6, 0] = 5
    model = PlantedNet()
    for target, place in ((0, (1, 2, 3)), (1, (3, 6, 0))):
        cam = grad_cam(model, x, target, layer=model.features)
        assert np.unravel_index(int(cam[0].argmax()), (4, 8, 8)) == place
        assert int((cam > 0).sum()) == 1
    # By hand: the gradient of a mean over 256 positions is 1/256 everywhere; times the activation 5.
    assert cam.max() == pytest.approx(5 / 256)


def test_grad_cam_works_on_frozen_networks(clips: torch.Tensor) -> None:
    model = network("gc")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    cam = grad_cam(model, clips, torch.tensor([0, 2]), layer=model.res5)
    assert cam.shape == (2, 4, 2, 2)
    assert not model.res5._forward_hooks


def explained(folder: Path, kind: str, query: Place = (0, 0.5, 0.5)) -> Any:
    context = {"kind": kind, "stages": {"res3": [0]}}
    predictor = load(tiny_checkpoint(folder, model={"context": context}), device="cpu", precision="fp32")
    clip = torch.from_numpy(moving_frames(4, 32, 32)).permute(3, 0, 1, 2)[None]
    return explain(predictor, clip, 2, query=query, all_queries=True)


@pytest.mark.parametrize(("kind", "ringed_frames"), [("gc", 0), ("nl", 1)])
def test_only_maps_of_a_query_have_its_ring(tmp_path: Path, kind: str, ringed_frames: int) -> None:
    first, cam, attention, *mean = explained(tmp_path, kind).rows()
    assert first[0] == "frames"
    assert (first[1] == moving_frames(4, 32, 32)).all()
    assert cam[0].startswith("Grad-CAM for up")
    assert attention[0] == "attention of res3.0" + ringed_frames * ", from the ring"
    assert [name for name, _ in mean] == ["attention of res3.0, mean of all queries"] * ringed_frames
    elsewhere = explained(tmp_path, kind, (0, 0, 0)).rows()[2]
    assert bool((attention[1][0] != elsewhere[1][0]).any()) == bool(ringed_frames)


def test_every_query_of_the_grid_has_its_map_and_their_mean_is_beside(tmp_path: Path) -> None:
    found = explained(tmp_path, "nl")
    _, queries, mean = found.layers
    assert found.grid == (4, 4, 4)  # res3 of 4 frames of 32 x 32; the grid is no finer
    assert queries.maps.shape == (1 + 4 * 4 * 4, 4, 2, 2)  # keys are sub-sampled
    assert queries.maps.amax((1, 2, 3)).median() == 1
    torch.testing.assert_close(queries.maps[1:].mean(0), mean.maps[0])  # here the grid is all queries
    at = places(found.grid)
    assert at[0] == (0.125, 0.125, 0.125)
    for number in (0, 7, 63):
        one, other = explained(tmp_path, "nl", at[number]).layers[1].maps[0], queries.maps[1 + number]
        torch.testing.assert_close(one / one.max(), other / other.max(), rtol=1e-3, atol=1e-4)  # scales may differ
    picture = query_sheet(found)
    assert picture.shape == (4 * (64 + 18), 5 * 64, 3)
    assert explained(tmp_path, "gc").grid is None


def test_grad_cam_that_shows_nothing_says_so(tmp_path: Path) -> None:
    predictor = load(tiny_checkpoint(tmp_path), device="cpu", precision="fp32")
    clip = torch.from_numpy(moving_frames(4, 32, 32)).permute(3, 0, 1, 2)[None]
    assert "everywhere" not in explain(predictor, clip, 2).layers[0].name
    predictor.model.get_submodule("head.proj").weight.data[2] = -1  # every channel, never negative, speaks against it
    assert explain(predictor, clip, 2).layers[0].name == "Grad-CAM for up: 0 everywhere"


def test_maps_of_a_timeline_explain_the_label_of_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gcvideo.report.maps.explain", lambda predictor, clip, target: target)
    write_video(tmp_path / "a.mp4", moving_frames(8, 32, 32))
    predictor = load(tiny_checkpoint(tmp_path), device="cpu", precision="fp32")
    best = {"video": str(tmp_path / "a.mp4"), "predictions": [{"label": "a", "index": 7, "score": 0.5}]}
    assert explain_video(predictor, best) == 7
    segments = [{"start": 0.0, "end": 4.0, "index": 7}, {"start": 4.0, "end": 6.5, "index": 3}]
    timeline = {"duration": 10.0, "timeline": [*segments, {"end": 10.0, "index": 7}]}
    assert explain_video(predictor, {**best, **timeline}) == 3


def test_maps_are_brought_to_the_size_of_the_clip_and_scaled() -> None:
    maps = scaled(resize_maps(1 + torch.rand(2, 2, 3, 3), (4, 12, 12)))
    assert maps.shape == (2, 4, 12, 12)
    assert maps.amin() > 0.3, "0 stays 0: a map that is nearly even does not look as if it were not"
    assert maps.amax() == 1
    assert not scaled(torch.zeros(1, 2, 4, 4)).any()


def test_the_colour_scale_rises_in_lightness() -> None:
    luma = colour(np.linspace(0, 1, 50)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > 0).all()
    assert colour(np.zeros((2, 3))).shape == (2, 3, 3)


def test_an_overlay_shows_the_frame_where_the_map_is_low() -> None:
    frames = np.full((1, 2, 2, 3), 200, np.uint8)
    laid = overlay(frames, np.array([[[0.0, 1.0], [0.0, 0.0]]]))
    assert (laid[0, 0, 0] == 160).all()
    assert np.abs(laid[0, 0, 1].astype(int) - (0.65 * np.array([252, 254, 164]) + 56)).max() <= 1


def test_a_ring_marks_a_place_in_one_frame() -> None:
    frames = np.full((4, 32, 48, 3), 100, np.uint8)
    marked = ringed(frames, (0.5, 0.25, 1.0))
    assert [bool((marked[t] != 100).any()) for t in range(4)] == [False, False, True, False]
    changed = np.argwhere((marked[2] != 100).any(axis=-1))
    assert np.abs(changed.mean(axis=0) - (8, 47)).max() < 4
    assert {0, 255} <= set(np.unique(marked[2]))
    assert (frames == 100).all()
    assert (ringed(frames, (1, 1, 1))[3] != 100).any()


def test_a_sheet_keeps_the_order_and_cuts_a_name_at_the_next_one() -> None:
    shades = [40 * (i + 1) for i in range(5)]
    frames = [(f"name {i} " * 9, np.full((10, 20, 3), shade, np.uint8)) for i, shade in enumerate(shades)]
    picture = sheet([frames[:3], frames[3:]], frame_height=30)
    assert picture.shape == (2 * 48, 3 * 60, 3)
    found = [picture[48 * (i // 3) + 18 + 15, 60 * (i % 3) + 30, 0] for i in range(5)]
    assert found == shades
    assert (picture[:18, 60:64] == 255).all(), "a name that is too long does not run into the next"


def test_a_film_of_few_colours_keeps_its_greys(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 200, dtype=np.uint8)
    frame = colour(np.broadcast_to(np.linspace(0, 1, 200), (100, 200)))
    frame[50:] = np.broadcast_to(ramp[None, :, None], (50, 200, 3))
    save_animation(tmp_path / "a.gif", np.stack([frame] * 2))
    shown = np.asarray(Image.open(tmp_path / "a.gif").convert("RGB")).astype(float)
    means = [part.reshape(-1, 5, 40, 5, 3).mean(axis=(1, 3)) for part in (shown, frame.astype(float))]
    assert np.abs(means[0] - means[1]).max() < 12


def test_files(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 33, 47, 3), dtype=np.uint8)
    picture = sheet([[("res3\n.0", frame) for frame in frames]] * 2, frame_height=50)
    assert picture.shape == (2 * 68, 5 * 71, 3)
    save_picture(tmp_path / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)
    save_animation(tmp_path / "a.gif", frames)
    assert Image.open(tmp_path / "a.gif").n_frames == 5  # type: ignore[attr-defined]
    save_animation(tmp_path / "a.mp4", frames)
    with av.open(str(tmp_path / "a.mp4")) as video:
        assert [(f.height, f.width) for f in video.decode(video=0)] == [(32, 46)] * 5

    uri = data_uri(frames[0], height=20)
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).height == 20


def test_a_video_plays_on_a_page_in_its_own_time(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", moving_frames(50))  # 2 s
    picture = Image.open(
        io.BytesIO(base64.b64decode(moving_picture(str(video), count=10, height=24).partition(",")[2]))
    )
    assert (picture.format, picture.n_frames, picture.height) == ("WEBP", 10, 24)  # type: ignore[attr-defined]
    picture.seek(1)
    picture.load()
    assert 10 * picture.info["duration"] == pytest.approx(2000, rel=0.1)
    assert moving_picture(str(tmp_path / "none.mp4")) == ""
