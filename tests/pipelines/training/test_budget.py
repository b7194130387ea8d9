import pytest
from accelerate import Accelerator

from pipelines.training.budget import Budget, learning_rate


def test_progress_follows_the_steps():
    budget, accelerator = Budget(max_steps=10, max_minutes=None), Accelerator(cpu=True)
    assert [budget.progress(step, accelerator) for step in (0, 5, 10)] == [0, 0.5, 1]


def test_progress_follows_the_clock_with_the_time_before_an_interruption():
    budget, accelerator = Budget(None, max_minutes=2, seconds_before=60), Accelerator(cpu=True)
    assert budget.progress(1000, accelerator) == 0.5
    budget.start()
    assert budget.progress(0, accelerator) > 0.5
    assert Budget(None, 2, 120).progress(0, accelerator) == 1


def test_whichever_ends_first_ends_the_run():
    accelerator = Accelerator(cpu=True)
    assert Budget(10, max_minutes=1, seconds_before=6).progress(5, accelerator) == 0.5
    assert Budget(10, max_minutes=1, seconds_before=48).progress(5, accelerator) == 0.8


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [learning_rate(2.0, 10, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates.index(max(rates)) == 9
    assert rates[50] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert rates[9:] == sorted(rates[9:], reverse=True)
