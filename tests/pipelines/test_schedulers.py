"""Each sampler against the exact answer: Gaussian data, whose noise prediction is known in closed form."""

import inspect

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from pipelines import SCHEDULERS, make_scheduler
from pipelines.stepping import check_steps

SPREAD = 0.15  # standard deviation of the data, far from the range that samplers clip to
STOCHASTIC = {"ddpm", "sde-dpmsolver++", "euler-ancestral"}


def draw_gaussian(name, steps, prediction_type="epsilon", count=4000):
    """Return the noise that the sampler started from and the values that it drew, each `(count,)`."""
    scheduler = make_scheduler(name, DDPMScheduler(prediction_type=prediction_type).config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 1, 1, generator=generator)
    sample = noise * scheduler.init_noise_sigma
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in scheduler.timesteps:
        signal = scheduler.alphas_cumprod[int(timestep)]
        noisy = scheduler.scale_model_input(sample, timestep)
        image = signal.sqrt() * SPREAD**2 * noisy / (signal * SPREAD**2 + 1 - signal)  # E[x_0 | x_t]
        predicted_noise = (noisy - signal.sqrt() * image) / (1 - signal).sqrt()
        prediction = {
            "epsilon": predicted_noise,
            "v_prediction": signal.sqrt() * predicted_noise - (1 - signal).sqrt() * image,
            "sample": image,
        }[prediction_type]
        sample = scheduler.step(prediction, timestep, sample, **options).prev_sample
    return noise.flatten(), sample.flatten()


def error(name, steps):
    """Return how far a deterministic sampler ends from the exact solution of the probability flow, the data as unit.

    Each value keeps its rank, and so its number of standard deviations (Song et al. 2021, eq. 13).
    """
    signal = DDPMScheduler().alphas_cumprod[-1]
    noise, sample = draw_gaussian(name, steps)
    exact = SPREAD * noise / (signal * SPREAD**2 + 1 - signal).sqrt()
    return float((sample - exact).square().mean().sqrt()) / SPREAD


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("dpmsolver++", 2), ("unipc", 2), ("deis", 2), ("heun", 2)]
)
def test_a_deterministic_sampler_is_as_accurate_as_its_order_says(name, order):
    coarse, fine = error(name, 40), error(name, 160)
    assert fine < 0.07
    assert coarse / fine > 0.8 * 4**order or fine < 0.025  # where whole timesteps are too coarse to see more


@pytest.mark.parametrize("steps", [30, 130, 300, 400, 600, 999])
def test_ddim_is_as_accurate_where_the_steps_do_not_divide_the_timesteps(steps):
    assert error("ddim", steps) < 1.3 * error("euler", steps) + 0.01


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_diffusers_own_where_the_steps_divide_the_timesteps(eta):
    ours = make_scheduler("ddim", DDPMScheduler(prediction_type="v_prediction").config)
    theirs = DDIMScheduler.from_config(ours.config)
    samples = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(25)
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(2, 1, 4, 4, generator=generator)
        for timestep in scheduler.timesteps:
            prediction = torch.randn(sample.shape, generator=generator)
            sample, _ = scheduler.step(prediction, timestep, sample, eta, generator=generator, return_dict=False)
        samples.append(sample)
    torch.testing.assert_close(*samples)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_number_of_steps_is_refused_or_ends_at_the_cleanest_timestep(name):
    scheduler = make_scheduler(name, DDPMScheduler().config)
    refused = []
    for steps in range(1, 1001):
        try:
            check_steps(steps, scheduler)
        except ValueError as error:
            refused.append((steps, str(error)))
            continue
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == (2 * steps - 1 if name == "heun" else steps)
        assert scheduler.timesteps[0] == 999
        assert scheduler.timesteps[-1] >= 0
    assert len(refused) == (0 if name == "lcm" else 62)
    if refused:
        assert refused[2][0] == 121
        assert refused[2][1].endswith("take 120 or 123")


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_a_stochastic_sampler_draws_the_spread_of_the_data(name):
    spreads = [float(draw_gaussian(name, steps)[1].std()) / SPREAD for steps in (20, 80, 500)]
    assert spreads == sorted(spreads)
    assert spreads[-1] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"lcm"}))
def test_a_small_error_of_the_network_stays_small_where_the_schedule_ends_in_pure_noise(name):
    scheduler = make_scheduler(name, DDPMScheduler(beta_schedule="squaredcos_cap_v2").config)
    scheduler.set_timesteps(25)
    spreads = []
    for error in (0.0, 0.01):
        generator = torch.Generator().manual_seed(0)
        scheduler.set_timesteps(25)
        sample = torch.randn(1000, 1, 1, 1, generator=generator) * scheduler.init_noise_sigma
        options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for timestep in scheduler.timesteps:
            signal = scheduler.alphas_cumprod[int(timestep)]
            noisy = scheduler.scale_model_input(sample, timestep)
            noise = (1 - signal).sqrt() * noisy / (signal * SPREAD**2 + 1 - signal)
            sample = scheduler.step(noise + error, timestep, sample, **options).prev_sample
        spreads.append(float(sample.square().mean().sqrt()))
    assert spreads[0] == pytest.approx(SPREAD, rel=0.25)
    assert abs(spreads[1] - spreads[0]) < SPREAD


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_consistency_sampler_draws_the_spread_of_the_data(steps):
    scheduler = make_scheduler("lcm", DDPMScheduler(prediction_type="sample").config)
    scheduler.set_timesteps(steps)
    assert int(scheduler.timesteps[0]) == 999
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(4000, 1, 1, 1, generator=generator)
    for timestep in scheduler.timesteps:
        signal = scheduler.alphas_cumprod[int(timestep)]
        image = SPREAD * sample / (signal * SPREAD**2 + 1 - signal).sqrt()  # where the probability flow ends
        sample = scheduler.step(image, timestep, sample, generator=generator).prev_sample
    assert float(sample.std()) == pytest.approx(SPREAD, rel=0.04)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++", "unipc", "deis", "euler", "heun"])
def test_the_prediction_type_makes_no_difference(name, prediction_type):
    expected = draw_gaussian(name, 20, count=10)[1]
    torch.testing.assert_close(draw_gaussian(name, 20, prediction_type, count=10)[1], expected, atol=1e-4, rtol=1e-3)
