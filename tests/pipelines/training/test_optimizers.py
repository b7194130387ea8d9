import sys

import pytest
from torch import nn

from pipelines.training import TrainingConfig
from pipelines.training.optimizers import make_optimizer
from tests.conftest import tiny_basic_unet, tiny_unet


def test_muon_has_the_convolutions_between_the_first_and_the_last():
    model = tiny_unet()
    optimizer = make_optimizer(TrainingConfig(max_steps=1, optimizer="muon", learning_rate=0.5), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    inner, rest = ({names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups)
    assert inner | rest == set(names.values())
    assert not inner & rest
    assert "encoder.0.blocks.0.residual.conv1.weight" in inner
    assert {
        "stem.weight",
        "head.2.weight",
        "time_embedding.0.weight",
        "encoder.0.blocks.0.residual.norm1.weight",
    } <= rest
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}


def test_muon_leaves_transposed_convolutions_alone():
    model = tiny_basic_unet()
    optimizer = make_optimizer(TrainingConfig(max_steps=1, optimizer="muon"), model)
    taken = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    transposed = [module for module in model.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert transposed
    assert not any(id(module.weight) in taken for module in transposed)


def test_an_unknown_optimizer_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(ValueError, match="optimizer is 'lion'; it is one of adamw, muon, soap"):
        make_optimizer(TrainingConfig(max_steps=1, optimizer="lion"), tiny_unet())
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match=r"optimizer muon: .*pytorch_optimizer.*; pip install 'denoiser\[bench\]'"):
        make_optimizer(TrainingConfig(max_steps=1, optimizer="muon"), tiny_unet())


@pytest.mark.parametrize("name", ["adamw", "muon", "soap"])
def test_the_settings_reach_the_optimizer(name):
    training = TrainingConfig(max_steps=1, optimizer=name, learning_rate=0.01, adam_betas=(0.8, 0.95), weight_decay=0.3)
    for group in make_optimizer(training, tiny_unet()).param_groups:
        assert (group["lr"], group["weight_decay"]) == (0.01, 0.3)
        if not group.get("use_muon"):
            assert tuple(group["betas"]) == (0.8, 0.95)
