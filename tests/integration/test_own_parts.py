"""Network, loss, optimizer and dataset of one's own in a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gcvideo.data.dataset import ClipBatch, ClipDataset
from gcvideo.data.splits import load_split
from gcvideo.errors import ConfigError
from gcvideo.train.trainer import Trainer
from tests.training import last_state, make_videos, metrics, same_tensors, train_config

MY_LOSS = """
from torch import nn
from torch.nn import functional as F

class Focal(nn.Module):
    def forward(self, logits, labels):
        loss = F.cross_entropy(logits, labels, reduction="none")
        return ((1 - (-loss).exp()) ** 2 * loss).mean()

def plain(logits, labels):
    return F.cross_entropy(logits, labels)

"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_videos(tmp_path_factory.mktemp("own"))
    (folder / "my_loss.py").write_text(MY_LOSS)
    return folder


def test_a_loss_by_dotted_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(place)
    losses = {}
    for name in ("my_loss:Focal", "my_loss:plain", None):
        config = train_config(place, f"loss-{name}", train={"epochs": 1, "loss": name})
        Trainer(config).fit()
        losses[name] = [line["loss"] for line in metrics(config)]
    assert losses["my_loss:plain"] == losses[None]
    assert losses["my_loss:Focal"][0] < losses[None][0]
    with pytest.raises(ConfigError, match=r"train\.label_smoothing: belongs to cross entropy"):
        train_config(place, train={"loss": "my_loss:Focal", "label_smoothing": 0.1})


def test_a_network_and_a_loss_as_objects(place: Path) -> None:
    network = nn.Sequential(nn.Conv3d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    network.append(nn.Linear(4, 4))
    before = network[0].weight.detach().clone()
    seen: list[torch.Size] = []

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(logits.shape)
        return F.cross_entropy(logits, labels)

    config = train_config(place, "objects", train={"epochs": 1})
    results = Trainer(config, model=network, loss=loss).fit()
    assert results["steps"] == 2
    assert seen == [torch.Size([4, 4])] * 2
    assert not torch.equal(network[0].weight, before)
    assert same_tensors(last_state(config)["model"], network.state_dict())


def test_a_dataset_as_an_object(place: Path) -> None:
    class Black(ClipDataset):
        def sample(self, *args: Any, **options: Any) -> ClipBatch:
            sample = super().sample(*args, **options)
            return sample._replace(clips=torch.zeros_like(sample.clips))

    config = train_config(place, "dataset", train={"epochs": 1, "val_every": 0})
    records = load_split(config, config.data.train, name="training")
    assert records is not None
    config.data.train.annotation = None
    dataset = Black(records, data=config.data, seed=config.seed)
    Trainer(config, dataset=dataset).fit()
    assert len(metrics(config)) == 2
    weights = last_state(config)["model"]["stem.norm.running_mean"]
    colour = train_config(place, "colour", train={"epochs": 1, "val_every": 0})
    Trainer(colour).fit()
    assert not torch.equal(last_state(colour)["model"]["stem.norm.running_mean"], weights)
    with pytest.raises(ConfigError, match=r"Trainer\(dataset=\.\.\.\): does not work with --overfit"):
        Trainer(config, dataset=dataset, overfit=2)
