from collections import Counter

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.profile import OUTSIDE, _convolutions, profiles


def test_a_training_step_and_forward_passes_are_profiled(field):
    rows = profiles(field.entries["narrow"], batch_sizes=(2, 3))
    assert [(row["pass"], row["batch_size"]) for row in rows[1:]] == [("forward pass", 2), ("forward pass", 3)]
    step, *passes = rows
    assert step["kinds"]["optimizer and average"] > 0
    assert all(row["kinds"]["optimizer and average"] == 0 for row in passes)
    assert all(
        row["kinds"][kind] > 0 for row in rows for kind in ("convolution", "normalisation", "activation", OUTSIDE)
    )

    _, model, _ = field.entries["narrow"].build(1, seed=0)
    layers = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    for row in rows:
        assert sum(row["kinds"].values()) == pytest.approx(row["profiled_seconds"])
        calls = Counter()
        for convolution in row["convolutions"]:
            calls[convolution["direction"]] += convolution["calls"]
        assert calls["forward"] == layers
        assert calls["backward"] == (layers if row is step else 0)
        assert 0 < sum(convolution["seconds"] for convolution in row["convolutions"]) < row["profiled_seconds"]


def test_the_operations_of_a_convolution_are_those_that_pytorch_counts():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 1),
        nn.ConvTranspose2d(6, 5, 2, stride=2),
        nn.Conv2d(5, 2, 3, dilation=2),
    )
    images = torch.zeros(7, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        network(images).sum().backward()
    rows = _convolutions(profiler.events())
    assert {row["convolution"] for row in rows} == {
        "3x3, 3 to 4 channels, 8x8, stride 2",
        "1x1, 4 to 6 channels, 4x4",
        "2x2, 6 to 5 channels, 4x4, stride 2, transposed",
        "3x3, 5 to 2 channels, 8x8",
    }
    for direction, operation in (
        ("forward", torch.ops.aten.convolution),
        ("backward", torch.ops.aten.convolution_backward),  # of which the first layer has one product only
    ):
        counted = sum(row["operations"] for row in rows if row["direction"] == direction)
        assert counted == counter.get_flop_counts()["Global"][operation]
