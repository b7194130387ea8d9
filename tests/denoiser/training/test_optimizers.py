import pytest

from denoiser.training import TrainingConfig
from denoiser.training.optimizers import make_optimizer
from tests.conftest import tiny_unet


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


@pytest.mark.parametrize("name", ["adamw", "muon", "soap"])
def test_the_settings_reach_the_optimizer(name):
    training = TrainingConfig(max_steps=1, optimizer=name, learning_rate=0.01, adam_betas=(0.8, 0.95), weight_decay=0.3)
    for group in make_optimizer(training, tiny_unet()).param_groups:
        assert (group["lr"], group["weight_decay"]) == (0.01, 0.3)
        if not group.get("use_muon"):
            assert tuple(group["betas"]) == (0.8, 0.95)
