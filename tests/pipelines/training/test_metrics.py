import pytest
import torch
from accelerate import Accelerator

from pipelines.training.metrics import Window


def test_losses_are_averaged_over_all_and_by_quarter_of_the_timesteps():
    window = Window(1000, torch.device("cpu"))
    with window.timed("step"), window.timed("data"):
        window.count(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 249, 250]))
        window.count(torch.tensor([4.0, 5.0]), torch.tensor([750, 999]))
    window.gradient_norms.append(torch.tensor(2.0))
    window.count_step(5, skipped=False)
    figures = window.summary(Accelerator(cpu=True))
    assert figures["loss"] == 3
    assert (figures["loss_quarter_1"], figures["loss_quarter_2"], figures["loss_quarter_4"]) == (1.5, 3, 4.5)
    assert "loss_quarter_3" not in figures
    assert figures["gradient_norm"] == 2
    assert figures["skipped_steps"] == 0
    assert figures["images_per_second"] == pytest.approx(5000 / figures["step_milliseconds"])
    assert 0 < figures["data_milliseconds"] <= figures["step_milliseconds"]


def test_a_loss_that_is_no_number_is_not_averaged():
    window = Window(1000, torch.device("cpu"))
    with window.timed("step"), window.timed("data"):
        window.count(torch.tensor([1.0, torch.nan, torch.inf, 3.0]), torch.tensor([0, 0, 999, 0]))
    window.count_step(4, skipped=True)
    figures = window.summary(Accelerator(cpu=True))
    assert (figures["loss"], figures["loss_quarter_1"], figures["skipped_steps"]) == (2, 2, 1)
    assert "loss_quarter_4" not in figures
    assert "gradient_norm" not in figures
