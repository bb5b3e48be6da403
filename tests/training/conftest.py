"""Plain fastai Learners, with nothing of lesionfast in them."""

import fastai.callback.progress  # noqa: F401 - adds no_bar to Learner
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import params
from torch import nn
from torch.utils.data import TensorDataset


@pytest.fixture
def plain_learner(tmp_path):
    """A Learner with batch norm, three parameter groups and one input."""
    torch.manual_seed(0)
    inputs = torch.randn(96, 8)
    dataset = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    train = DataLoader(dataset, bs=16, shuffle=True, drop_last=True, num_workers=0)
    valid = DataLoader(dataset, bs=32, num_workers=0)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(8, 2),
    )
    return Learner(
        DataLoaders(train, valid, device=torch.device("cpu")),
        model,
        CrossEntropyLossFlat(),
        lr=1e-2,
        metrics=accuracy,
        splitter=lambda m: [params(each) for each in m],
        path=tmp_path,
        train_bn=False,
    )


@pytest.fixture
def picture_learner(tmp_path):
    """A plain Learner over 24 pictures of 96 pixels, that tells where they are bright."""
    torch.manual_seed(0)
    dataset = TensorDataset(torch.rand(24, 3, 96, 96), torch.arange(24) % 2)
    train = DataLoader(dataset, bs=8, shuffle=True, drop_last=True, num_workers=0)
    valid = DataLoader(dataset, bs=8, num_workers=0)
    body = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(3)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(36, 2))
    dls = DataLoaders(train, valid, device=torch.device("cpu"))
    return Learner(dls, model, CrossEntropyLossFlat(), lr=1e-3, path=tmp_path)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 + 2, 4)

    def forward(self, image, metadata):
        return self.layer(torch.cat([image.mean((2, 3)), metadata], dim=1))


@pytest.fixture
def two_input_learner():
    """A plain Learner over 8 pictures and metadata; `plain` holds its tensors."""
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(8, 3, 10, 10), torch.rand(8, 2), torch.arange(8) % 4)
    loaders = [DataLoader(data, bs=8, num_workers=0) for _ in range(2)]
    for each in loaders:
        each.n_inp = 2
    dls = DataLoaders(*loaders, device=torch.device("cpu"))
    learn = Learner(dls, TwoInputs(), nn.CrossEntropyLoss(), lr=1e-3)
    learn.plain = data.tensors
    return learn
