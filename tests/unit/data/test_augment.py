"""Each augmentation switch does its work, does it alike on every frame, and follows the sample's own randomness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from gcvideo.config import AUGMENT_PRESETS, AugmentConfig, DataConfig, config_to_dict, load_config, save_config
from gcvideo.data.augment import ClipMixer, build_clip_augment
from gcvideo.data.crops import inception_box, random_box
from gcvideo.data.dataset import ClipDataset
from gcvideo.data.loader import balanced_order, train_loader
from gcvideo.data.records import RecordTable
from gcvideo.data.sampling import sample_rng
from gcvideo.errors import ConfigError
from gcvideo.train.step import TrainStep
from tests.training import train_config
from tests.videos import moving_frames, write_video

SWITCHES = [{"rand_augment": 2}, {"color_jitter": (0.4, 0.4, 0.4, 0.1)}, {"gamma": 1.0}, {"erase": 1.0}]


def still_clip(frames: int = 3) -> torch.Tensor:
    """The same picture over and over, uint8 (C, T, H, W)."""
    picture = torch.from_numpy(moving_frames(1, 40, 40)[0]).permute(2, 0, 1)
    return picture.unsqueeze(1).repeat(1, frames, 1, 1)


def augment(**switches) -> DataConfig:
    return DataConfig(frames=4, stride=2, crop=32, short_side=(32, 40), augment=AugmentConfig(**switches))


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> RecordTable:
    folder = tmp_path_factory.mktemp("videos")
    names = [f"{number}.mp4" for number in range(4)]
    for number, name in enumerate(names):
        write_video(folder / name, moving_frames(30, seed=number))
    return RecordTable(ids=names, paths=names, labels=range(4), root=folder, source="made.txt")


def test_everything_is_off_by_default():
    assert build_clip_augment(DataConfig()) is None
    clips, labels = torch.rand(2, 3, 4, 5, 5), torch.tensor([0, 2])
    mixed, targets = ClipMixer(AugmentConfig(), num_classes=3)(clips, labels)
    assert mixed is clips
    assert torch.equal(targets, F.one_hot(labels, 3).float())


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: next(iter(switch)))
def test_a_clip_is_changed_alike_in_every_frame_and_by_its_own_randomness(switch):
    apply = build_clip_augment(augment(**switch))
    assert apply is not None
    clip = still_clip()
    changed = 0
    state = torch.random.get_rng_state()
    for index in range(8):
        got = apply(clip, sample_rng(0, 0, index))
        assert got.shape == clip.shape
        assert got.dtype == torch.uint8
        assert got.is_contiguous()
        assert (got == got[:, :1]).all()  # one draw for all frames
        assert torch.equal(got, apply(clip, sample_rng(0, 0, index)))
        changed += not torch.equal(got, clip)
    assert changed >= 6
    assert torch.equal(torch.random.get_rng_state(), state)  # the network's own draws are left alone


def test_erased_boxes_have_the_mean_colour():
    data = DataConfig(mean=(0.1, 0.5, 0.9), augment=AugmentConfig(erase=1.0))
    apply = build_clip_augment(data)
    assert apply is not None
    clip = torch.zeros(3, 2, 40, 40, dtype=torch.uint8)
    got = apply(clip, sample_rng(0, 0, 0))
    erased = (got != 0).all(dim=0)
    assert 0.02 <= erased.float().mean() <= 0.34
    assert got[:, erased].unique(dim=1).squeeze(1).tolist() == [26, 128, 230]


def test_erasing_happens_as_often_as_asked():
    apply = build_clip_augment(augment(erase=0.25))
    assert apply is not None
    clip = still_clip(1)
    count = sum(not torch.equal(apply(clip, sample_rng(0, 0, i)), clip) for i in range(400))
    assert 70 <= count <= 130


def test_inception_boxes_have_the_areas_and_ratios_asked_for():
    height, width = 240, 320
    boxes = np.array(
        [inception_box(height, width, area=(0.2, 0.9), ratio=(0.5, 2.0), rng=sample_rng(0, 0, i)) for i in range(2000)]
    )
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    areas, ratios = h * w / (height * width), w / h
    assert (areas.min(), areas.max()) == pytest.approx((0.2, 0.9), abs=0.02)
    assert ratios.min() == pytest.approx(0.5, abs=0.02)
    assert ratios.max() == pytest.approx(2.0, abs=0.03)
    assert len(np.unique(top)) > 100


def test_inception_box_that_never_fits_is_the_largest_central_one():
    box = inception_box(10, 1000, area=(1.0, 1.0), ratio=(0.75, 4 / 3), rng=sample_rng(0, 0, 0))
    assert box == (0, 493, 10, 13)


def test_the_crop_switch_chooses_the_box():
    def ratios(**switches):
        data = augment(**switches)
        return {box[2] / box[3] for i in range(20) for box in [random_box(48, 64, data=data, rng=sample_rng(0, 0, i))]}

    assert ratios() == {1.0}
    assert len(ratios(crop="inception")) > 10


def test_inception_boxes_follow_the_area_and_ratio_of_the_config():
    data = augment(crop="inception", crop_area=(0.5, 0.5), crop_ratio=(2.0, 2.0))
    for index in range(10):
        _, _, height, width = random_box(300, 400, data=data, rng=sample_rng(0, 0, index))
        assert height * width == pytest.approx(0.5 * 300 * 400, rel=0.01)
        assert width / height == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(
    ("switches", "transform"),
    [
        ({"rand_augment": 3, "rand_magnitude": 25}, v2.RandAugment(num_ops=3, magnitude=25)),
        (
            {"color_jitter": (0.4, 0.3, 0.2, 0.1)},
            v2.ColorJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1),
        ),
    ],
    ids=["rand_augment", "color_jitter"],
)
def test_switches_are_torchvisions_transforms_with_their_own_numbers(switches, transform):
    apply = build_clip_augment(augment(**switches))
    assert apply is not None
    clip = still_clip(2)
    for index in range(8):
        torch.manual_seed(int(sample_rng(0, 0, index).integers(2**63)))
        assert torch.equal(apply(clip, sample_rng(0, 0, index)), transform(clip.transpose(0, 1)).transpose(0, 1))


def test_your_own_augmentation_runs_last_and_with_the_randomness_of_the_sample(records, tmp_path, monkeypatch):
    (tmp_path / "my_aug.py").write_text(
        "def gray(clip, rng):\n"
        "    assert clip.shape == (3, 4, 32, 32)\n"
        "    return clip.float().mean(0, keepdim=True).byte().expand(3, -1, -1, -1) // int(rng.integers(1, 4))\n"
        "def wide(clip, rng):\n"
        "    return clip.float()\n"
    )
    monkeypatch.chdir(tmp_path)
    data = augment(custom="my_aug:gray", erase=1.0)
    batches = [
        list(train_loader(ClipDataset(records, data=data, seed=0), batch_size=2, seed=0, epoch=0, workers=workers))
        for workers in (0, 2)
    ]
    for here, there in zip(*batches, strict=True):
        assert (here.clips == here.clips[:, :1]).all()
        assert torch.equal(here.clips, there.clips)
    plain = ClipDataset(records, data=augment(erase=1.0), seed=0)[0, 1].clips
    gray = ClipDataset(records, data=data, seed=0)[0, 1].clips
    assert any(torch.equal(plain.float().mean(1).byte() // n, gray[:, 0]) for n in (1, 2, 3))
    with pytest.raises(ConfigError, match=r"data.augment.custom: my_aug:wide must return .* uint8 \(3, 4, 32, 32\)"):
        ClipDataset(records, data=augment(custom="my_aug:wide"), seed=0)[0, 0]
    with pytest.raises(ConfigError, match=r"data\.augment\.custom: 'my_aug:grey'"):
        ClipDataset(records, data=augment(custom="my_aug:grey"), seed=0)


def test_samples_are_augmented(records):
    plain = ClipDataset(records, data=augment(), seed=0)
    for switch in SWITCHES:
        augmented = ClipDataset(records, data=augment(**switch), seed=0)
        assert any(not torch.equal(augmented[0, i].clips, plain[0, i].clips) for i in range(4))
    small = ClipDataset(records, data=augment(crop="inception", crop_area=(0.1, 0.1)), seed=0)
    assert small[0, 0].clips.shape == (1, 3, 4, 32, 32)


def test_repeated_augmentation_cuts_several_clips_from_one_decode(records, monkeypatch):
    from gcvideo.data import dataset as dataset_module

    opened = []
    genuine = dataset_module.open_video
    monkeypatch.setattr(dataset_module, "open_video", lambda path, **o: opened.append(path) or genuine(path, **o))
    data = augment(clips_per_video=3)
    sample = ClipDataset(records, data=data, seed=0)[0, 1]
    assert len(opened) == 1
    assert sample.clips.shape == (3, 3, 4, 32, 32)
    assert not torch.equal(sample.clips[0], sample.clips[1])
    batches = list(train_loader(ClipDataset(records, data=data, seed=0), batch_size=6, seed=0, epoch=0))
    assert [batch.clips.shape[0] for batch in batches] == [6, 6]
    assert batches[0].labels.tolist() == batches[0].indices.tolist()
    indices = [index for batch in batches for index in batch.indices.tolist()]
    assert sorted(indices) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]  # an epoch still opens each video once
    assert indices[0] == indices[1] == indices[2]
    with pytest.raises(ConfigError, match="clips_per_video: does not divide the 4 clips"):
        train_loader(ClipDataset(records, data=data, seed=0), batch_size=4, seed=0, epoch=0)


def test_balanced_order_gives_every_class_its_share():
    labels = np.array([0] * 90 + [1] * 9 + [5] * 2)
    order = balanced_order(labels, np.random.default_rng(0))
    assert len(order) == len(labels)
    counts = np.bincount(labels[order], minlength=6)
    assert sorted(counts[[0, 1, 5]].tolist()) == [33, 34, 34]
    small = np.bincount(order, minlength=len(labels))
    assert len(np.unique(order[labels[order] == 0])) == counts[0]  # a large class repeats nothing
    assert set(small[90:99].tolist()) <= {3, 4}  # a small one repeats its records evenly
    assert labels[order][:30].tolist() != sorted(labels[order][:30].tolist())


def test_class_balanced_switch(records):
    labels = [0, 0, 0, 1]
    names = [f"{n}.mp4" for n in range(4)]
    skewed = RecordTable(ids=names, paths=names, labels=labels, root=records.root, source="made.txt")

    def seen(**switches):
        dataset = ClipDataset(skewed, data=augment(**switches), seed=0)
        return [
            x
            for epoch in range(3)
            for b in train_loader(dataset, batch_size=2, seed=0, epoch=epoch)
            for x in b.labels.tolist()
        ]

    assert sorted(seen()) == [0] * 9 + [1] * 3
    assert sorted(seen(class_balanced=True)) == [0] * 6 + [1] * 6


def test_a_record_that_comes_up_again_shows_another_clip(records):
    one = records.select([0])
    (batch,) = train_loader(ClipDataset(one, data=augment(), seed=0), batch_size=3, seed=0, epoch=0)
    assert batch.indices.tolist() == [0, 0, 0]
    assert len({clip.numpy().tobytes() for clip in batch.clips}) == 3


def test_mixup_mixes_clips_and_targets_in_the_same_proportion():
    torch.manual_seed(0)
    clips = torch.rand(4, 3, 2, 8, 8)
    labels = torch.tensor([0, 1, 2, 3])
    mixed, targets = ClipMixer(AugmentConfig(mixup=0.8), num_classes=5)(clips, labels)
    share = targets[0, 0]  # each clip is mixed with the one before it
    assert 0 < share < 1
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(targets[0, 3], 1 - share)
    torch.testing.assert_close(mixed, share * clips + (1 - share) * clips.roll(1, 0))
    assert type(mixed) is torch.Tensor


def test_cutmix_pastes_one_box_through_all_frames_and_counts_its_area():
    torch.manual_seed(3)
    clips = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 3, 2, 32, 32)
    mixed, targets = ClipMixer(AugmentConfig(cutmix=1.0), num_classes=4)(clips, torch.arange(4))
    foreign = mixed != clips
    assert foreign.any()
    assert (foreign == foreign[:1, :1, :1]).all()
    assert (mixed[foreign] == clips.roll(1, 0)[foreign]).all()
    torch.testing.assert_close(targets[1, 0], foreign.float().mean())


def test_both_mixers_take_turns_and_the_chance_is_kept():
    torch.manual_seed(0)
    mixer = ClipMixer(AugmentConfig(mixup=0.8, cutmix=1.0, mix_chance=0.5), num_classes=2)
    clips = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1).expand(2, 1, 1, 16, 16)
    counts = {"plain": 0, "mixup": 0, "cutmix": 0}
    for _ in range(400):
        mixed, _targets = mixer(clips, torch.tensor([0, 1]))
        if mixed is clips:
            counts["plain"] += 1
        else:
            counts["mixup" if ((mixed > 0) & (mixed < 1)).any() else "cutmix"] += 1
    assert 160 <= counts["plain"] <= 240
    assert 60 <= counts["mixup"] <= 140
    assert 60 <= counts["cutmix"] <= 140


@pytest.mark.parametrize("merged", [1, 3])
def test_clips_of_a_video_are_mixed_with_those_of_another(merged):
    """With repeated augmentation, and with the larger batches of multigrid training."""
    torch.manual_seed(0)
    videos = 2 * merged
    labels = torch.arange(videos).repeat_interleave(3)  # as the loader gives them: three clips of each video
    clips = torch.rand(3 * videos, 3, 2, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    mixed, targets = ClipMixer(AugmentConfig(mixup=0.8, clips_per_video=3), num_classes=videos)(clips, labels)
    share = targets[0, 0]
    assert 0 < share < 1
    assert ((targets > 0).sum(dim=1) == 2).all()
    torch.testing.assert_close(targets.gather(1, labels[:, None])[:, 0], share.expand(3 * videos))
    for clip, other, target in zip(mixed, clips, targets, strict=True):
        rest = (clip - share * other) / (1 - share)
        (partner,) = ((clips - rest).abs().amax((1, 2, 3, 4)) < 1e-4).nonzero()
        torch.testing.assert_close(target[labels[partner]], 1 - share.view(1))
    assert mixed.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_clips_of_a_single_video_are_not_mixed_but_refused(tmp_path, kind):
    def learner(batch_size, accumulate, repeats):
        augment = {kind: 1.0, "clips_per_video": repeats}
        train = {"batch_size": batch_size, "accumulate": accumulate}
        return TrainStep(train_config(tmp_path, data={"augment": augment}, train=train), torch.device("cpu"))

    for sizes in ((1, 1, 1), (4, 4, 1), (4, 2, 2)):
        with pytest.raises(ConfigError, match=r"mixup and cutmix need clips of two videos .* raise train\.batch_size"):
            learner(*sizes)
    assert learner(4, 1, 2).mixer is not None
    ClipMixer(AugmentConfig(), num_classes=3)  # nothing to mix


@pytest.mark.parametrize(("kind", "low", "high"), [("mixup", 0.4, 0.6), ("cutmix", 0.45, 0.9)])
def test_shares_are_drawn_from_the_beta_distribution_of_the_config(kind, low, high):
    """Beta(1000, 1000) lies near one half; the box of cutmix shows less than its share where it meets the border."""
    torch.manual_seed(0)
    mixer = ClipMixer(AugmentConfig(**{kind: 1000.0}), num_classes=2)
    shares = [mixer(torch.zeros(2, 3, 1, 64, 64), torch.tensor([0, 1]))[1][0, 0].item() for _ in range(30)]
    assert low < min(shares) < max(shares) < high


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"crop_area": (0.5, 1.5)}, "crop_area"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"rand_magnitude": 31}, "rand_magnitude"),
        ({"color_jitter": (0.0, 0.0, 0.0, 0.6)}, "color_jitter"),
        ({"erase": 1.5}, "data.augment.erase"),
        ({"mixup": -1.0}, "data.augment.mixup"),
        ({"gamma": -0.5}, "data.augment.gamma"),
        ({"clips_per_video": 0}, "clips_per_video"),
    ],
)
def test_impossible_switches_are_named(switches, message):
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**switches)


def test_switches_are_set_from_a_file_and_the_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {augment: {crop: inception, crop_area: [0.2, 1.0], mixup: 0.8}, target_fps: 30}\n")
    config = load_config(path, ["data.augment.clips_per_video=2", "data.augment.color_jitter=[0.4,0.4,0.4,0]"])
    assert config.data.augment == AugmentConfig(
        crop="inception", crop_area=(0.2, 1.0), mixup=0.8, clips_per_video=2, color_jitter=(0.4, 0.4, 0.4, 0.0)
    )
    assert config.data.target_fps == 30.0
    with pytest.raises(ConfigError, match=r"unknown key data\.augment\.cutmx; did you mean 'data.augment.cutmix'"):
        load_config(path, ["data.augment.cutmx=1.0"])
    with pytest.raises(ConfigError, match="target_fps: belongs to PySlowFast"):
        load_config(path, ["data.convention=mmaction2"])


@pytest.mark.parametrize("name", AUGMENT_PRESETS)
def test_a_preset_is_its_values_and_own_values_lie_over_it(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{augment: {{erase: 0.5, class_balanced: true, preset: {name}}}}}\n")
    config = load_config(path)
    assert config.data.augment == AugmentConfig(**{**as_tuples(name), "erase": 0.5, "class_balanced": True})
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml").data == config.data
    assert config_to_dict(config)["data"]["augment"]["erase"] == 0.5

    # On the command line, where what comes later wins; what no preset names stays.
    config = load_config(path, ["data.augment=strong", "data.augment.rand_augment=1", f"data.augment={name}"])
    assert config.data.augment == AugmentConfig(**as_tuples(name), class_balanced=True, rand_augment=1)
    config = load_config(path, [f"data.augment={name}", "data.augment.gamma=0.25"])
    assert config.data.augment == AugmentConfig(**{**as_tuples(name), "gamma": 0.25}, class_balanced=True)


def as_tuples(name: str) -> dict[str, object]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in AUGMENT_PRESETS[name].items()}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("strng", "'strng'"),
        ("3", "3"),
        ("off", "False"),
        ("[light]", "['light']"),
        ("", "None"),
        ("{preset: drak}", "'drak'"),
        ("{preset: {light: 1}}", "{'light': 1}"),
    ],
)
def test_what_is_no_preset_is_refused_in_one_line(tmp_path, value, found):
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{augment: {value}}}\n")
    expected = f"data.augment: expected none, light, strong, dark or `key: value` lines, found {found}"
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: {expected}"


def test_gamma_brightens_and_darkens_by_as_much_as_it_may():
    apply = build_clip_augment(augment(gamma=1.0))
    grey = torch.full((3, 2, 4, 4), 128, dtype=torch.uint8)
    levels = [int(apply(grey, sample_rng(0, 0, index)).unique()) for index in range(40)]
    lowest, highest = 255 * (128 / 255) ** 2, 255 * (128 / 255) ** 0.5
    assert lowest - 1 <= min(levels) < 80
    assert 160 < max(levels) <= highest + 1
    assert 12 <= sum(level > 128 for level in levels) <= 28


def test_short_side_range_matters_only_where_it_is_used():
    with pytest.raises(ConfigError, match=r"data\.short_side"):
        DataConfig(crop=64, short_side=(32, 40))
    DataConfig(crop=64, short_side=(32, 40), augment=AugmentConfig(crop="inception"))
