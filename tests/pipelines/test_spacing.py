from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from pipelines import DenoisingPipeline, SamplingConfig, check_sampling, load_pretrained, make_scheduler
from pipelines.spacing import LARGEST_SIGMA, spaced_timesteps, takes_timesteps
from tests.conftest import tiny_unet
from tests.pipelines.test_denoising import draw, make_pipeline


@pytest.fixture(params=["squaredcos_cap_v2", "linear"])
def alphas_cumprod(request):
    return DDPMScheduler(beta_schedule=request.param).alphas_cumprod


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50, 999, 1000])
def test_timesteps_fall_strictly_within_the_training_timesteps(alphas_cumprod, steps):
    timesteps = spaced_timesteps(alphas_cumprod, steps)
    assert len(timesteps) == steps
    assert np.all(np.diff([1000, *timesteps, -1]) < 0)


def test_the_steps_are_even_in_log_snr_between_their_ends(alphas_cumprod):
    timesteps = spaced_timesteps(alphas_cumprod, 10)
    log_snr = alphas_cumprod.double().logit()
    levels = log_snr[timesteps]
    spread = log_snr[:-1] - log_snr[1:]
    assert timesteps[-1] == 10
    assert levels[0] == pytest.approx(max(float(log_snr[-1]), -2 * np.log(LARGEST_SIGMA)), abs=0.2)
    assert levels.diff().std() < 2 * spread[timesteps].max()  # as even as whole timesteps can be
    assert levels.diff().max() - levels.diff().min() < 0.5
    assert levels.diff().min() > 0


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++"])
def test_a_spacing_takes_its_timesteps(name):
    pipeline, seen = make_pipeline(scheduler=name), []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(int(inputs[1][0])))
    spaced = draw(pipeline, spacing="log-snr", num_inference_steps=6)
    assert seen == spaced_timesteps(pipeline.scheduler.alphas_cumprod, 6)
    assert torch.equal(draw(pipeline, timesteps=seen[:6], num_inference_steps=None), spaced)


def test_the_spacing_of_a_pipeline_is_its_default_and_is_saved(tmp_path):
    plain = make_pipeline(scheduler="dpmsolver++")
    pipeline = DenoisingPipeline(plain.unet, plain.scheduler, spacing="log-snr")
    pipeline.save_pretrained(tmp_path / "spaced")
    pipeline = DenoisingPipeline.from_pretrained(tmp_path / "spaced")
    pipeline.set_progress_bar_config(disable=True)
    assert torch.equal(draw(pipeline), draw(plain, spacing="log-snr"))
    assert torch.equal(draw(pipeline, spacing="timesteps"), draw(plain))
    assert not torch.equal(draw(pipeline), draw(plain))


def test_a_spacing_that_was_not_asked_for_gives_way_to_the_scheduler_and_to_strength():
    plain = make_pipeline(scheduler="unipc")
    pipeline = DenoisingPipeline(plain.unet, plain.scheduler, spacing="log-snr")
    pipeline.set_progress_bar_config(disable=True)
    assert torch.equal(draw(pipeline), draw(plain))
    pipeline.scheduler = plain.scheduler = make_scheduler("ddim", DDPMScheduler().config)
    image = torch.zeros(3, 1, 16, 16)
    assert torch.equal(draw(pipeline, image=image, strength=0.5), draw(plain, image=image, strength=0.5))


@pytest.mark.parametrize(
    ("scheduler", "option"),
    [
        (EulerDiscreteScheduler, "use_karras_sigmas"),
        (HeunDiscreteScheduler, "use_exponential_sigmas"),
        (DPMSolverMultistepScheduler, "use_lu_lambdas"),
        (DPMSolverSinglestepScheduler, "use_karras_sigmas"),
    ],
)
def test_a_scheduler_with_noise_levels_of_its_own_keeps_them(scheduler, option):
    plain = make_pipeline()
    plain.scheduler = scheduler.from_config(DDPMScheduler().config, **{option: True})
    pipeline = DenoisingPipeline(plain.unet, plain.scheduler, plain.config.class_names, spacing="log-snr")
    pipeline.set_progress_bar_config(disable=True)
    assert torch.equal(draw(pipeline), draw(plain))


def test_ddim_between_given_timesteps_takes_exact_steps(noise):
    """With the true noise of one image, every step lands on that image at the next noise level."""
    scheduler = make_scheduler("ddim", DDPMScheduler(clip_sample=False).config)
    timesteps, image = [900, 400, 399, 20], torch.full_like(noise, 0.3)
    scheduler.set_timesteps(timesteps=timesteps)
    sample = scheduler.add_noise(image, noise, torch.tensor([900]))
    for timestep, later in pairwise(timesteps):
        sample = scheduler.step(noise, timestep, sample).prev_sample
        torch.testing.assert_close(sample, scheduler.add_noise(image, noise, torch.tensor([later])))
    torch.testing.assert_close(scheduler.step(noise, 20, sample).prev_sample, image, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": "log_snr"}, "spacing is 'log_snr'; it is one of timesteps, log-snr"),
        ({"timesteps": [5, 5], "num_inference_steps": None}, r"timesteps are \[5, 5\]; give falling ones"),
        ({"timesteps": [1000, 5], "num_inference_steps": None}, "from at most 999 to at least 0"),
        ({"timesteps": [], "num_inference_steps": None}, "give falling ones"),
        ({"timesteps": [5, 4]}, "which replace num_inference_steps and spacing"),
        ({"timesteps": [5.5, 4], "num_inference_steps": None}, "give a list of whole numbers"),
        ({"timesteps": 5, "num_inference_steps": None}, "timesteps are 5; give a list of whole numbers"),
    ],
)
def test_timesteps_that_cannot_be_taken_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(make_pipeline(), **options)


def test_schedulers_that_choose_their_timesteps_refuse_others():
    pipeline = make_pipeline(scheduler="unipc")
    for options in ({"spacing": "log-snr"}, {"timesteps": [5, 4], "num_inference_steps": None}):
        with pytest.raises(ValueError, match="UniPCMultistepScheduler chooses its"):
            draw(pipeline, **options)
    with pytest.raises(ValueError, match="UniPCMultistepScheduler chooses its timesteps itself"):
        check_sampling(SamplingConfig(spacing="log-snr"), tiny_unet(), pipeline.scheduler)


def test_a_student_keeps_its_own_timesteps():
    assert not takes_timesteps(load_pretrained("student").scheduler)
