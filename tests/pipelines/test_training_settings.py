"""Each option of the training's scheduler changes what it says it changes, or is refused."""

import inspect
import math
import re

import pytest
import torch
from diffusers import DDPMScheduler

from pipelines import SCHEDULERS, DenoisingPipeline, SamplingConfig, make_scheduler, sample_images
from pipelines.training.loss import check_noise_schedule, prediction_target
from tests.conftest import tiny_unet

THRESHOLDING = {"thresholding": True, "sample_max_value": 1.5}
THRESHOLD = "ddpm ddim dpmsolver++ sde-dpmsolver++ unipc deis lcm"
# For each option: other options that it needs, its value, and what shows the change.
EFFECTS = {
    "num_train_timesteps": ({}, 500, "noise"),
    "beta_start": ({}, 0.001, "noise"),
    "beta_end": ({}, 0.03, "noise"),
    "beta_schedule": ({}, "squaredcos_cap_v2", "noise"),
    "trained_betas": ({"num_train_timesteps": 3}, [0.1, 0.2, 0.4], "noise"),
    "rescale_betas_zero_snr": ({"prediction_type": "v_prediction"}, True, "noise"),
    "prediction_type": ({}, "v_prediction", "target"),
    "variance_type": ({}, "fixed_large", "ddpm"),
    "clip_sample": ({}, False, THRESHOLD),
    "clip_sample_range": ({}, 0.5, "ddpm ddim lcm"),
    "thresholding": ({"sample_max_value": 1.5}, True, THRESHOLD),
    "sample_max_value": (THRESHOLDING, 2.5, THRESHOLD),
    "dynamic_thresholding_ratio": ({**THRESHOLDING, "sample_max_value": 1000.0}, 0.6, THRESHOLD),
}
REFUSED = {"timestep_spacing": "trailing", "steps_offset": 1}
DEFAULTS = {name: entry.default for name, entry in inspect.signature(DDPMScheduler).parameters.items()}


def drawn(config, sampler):
    """Draw with a network whose predicted images go far beyond the data's range."""
    unet = tiny_unet()
    with torch.no_grad():
        unet.head[-1].weight.mul_(20)
    pipeline = DenoisingPipeline(unet, make_scheduler(sampler, config))
    return sample_images(pipeline, **SamplingConfig(num_images=2, steps=3, scheduler=sampler).arguments())


def witnessed(options, what):
    """Return what an option shall change."""
    scheduler = DDPMScheduler(**options)
    images, noise = torch.full((3, 1, 4, 4), 0.5), torch.ones(3, 1, 4, 4)
    if what in SCHEDULERS:
        return drawn(scheduler.config, what)
    if what == "target":
        return prediction_target(scheduler, images, noise, torch.tensor([0, 1, 2]))
    return scheduler.alphas_cumprod


@pytest.mark.parametrize("name", EFFECTS)
def test_an_option_of_the_scheduler_changes_what_it_is_for(name):
    needed, value, witnesses = EFFECTS[name]
    plain = {option: needed[option] for option in needed if option != name}
    if name not in ("thresholding", "sample_max_value", "trained_betas"):  # whose companions alone are refused
        check_noise_schedule(DDPMScheduler(**plain))
    check_noise_schedule(DDPMScheduler(**{**plain, name: value}))
    for what in witnesses.split():
        before, after = witnessed(plain, what), witnessed({**plain, name: value}, what)
        assert before.shape != after.shape or not torch.equal(before, after), what


@pytest.mark.parametrize("name", [name for name in EFFECTS if set(EFFECTS[name][2].split()) & set(SCHEDULERS)])
def test_a_sampler_that_cannot_do_as_the_training_says_is_refused(name):
    needed, value, witnesses = EFFECTS[name]
    config = DDPMScheduler(**{**needed, name: value}).config
    for sampler in set(SCHEDULERS) - set(witnesses.split()):
        if name in ("variance_type", "clip_sample"):  # which other samplers have no use for, or never do
            make_scheduler(sampler, config)
        else:
            with pytest.raises(ValueError, match=f"scheduler '{re.escape(sampler)}' cannot .*(clip|thresholding)"):
                make_scheduler(sampler, config)


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_without_an_effect_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is {REFUSED[name]}, and changes nothing"):
        check_noise_schedule(DDPMScheduler(**{name: REFUSED[name]}))


def test_no_option_of_the_scheduler_is_left_out():
    assert {*EFFECTS, *REFUSED} == set(DEFAULTS)


@pytest.mark.parametrize("saved", SCHEDULERS)
def test_the_defaults_draw_as_they_did_also_from_a_pipeline_that_was_saved_with_another_sampler(saved):
    training = DDPMScheduler().config
    config = make_scheduler(saved, training).config
    for sampler in SCHEDULERS:
        own = make_scheduler(sampler, training).config
        again = make_scheduler(sampler, config).config
        assert {name: again[name] for name in own if name != "_use_default_values"} == {
            name: own[name] for name in own if name != "_use_default_values"
        }
        clips = (own.get("clip_sample"), own.get("thresholding"), own.get("sample_max_value", 1.0))
        assert clips[2] == 1.0
        assert any(clips[:2]) == (sampler not in ("euler", "euler-ancestral", "heun"))


@pytest.mark.parametrize("between", ["dpmsolver++", "euler", "heun", "lcm", "ddim", "unipc"])
@pytest.mark.parametrize("options", [{"clip_sample": False}, {"variance_type": "fixed_large"}, {}])
def test_a_sampler_for_another_samplers_config_goes_by_the_training(options, between, tmp_path):
    trained = DDPMScheduler(**options).config
    make_scheduler(between, trained).save_pretrained(tmp_path)
    saved = DDPMScheduler.load_config(tmp_path)
    for name in ("ddpm", "ddim", "dpmsolver++"):
        ours, theirs = (make_scheduler(name, config).config for config in (saved, trained))
        assert all(ours[key] == value for key, value in theirs.items() if key != "_use_default_values")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("variance_type", "fixed_lagre"), ("prediction_type", "flow"), ("clip_sample_range", 0.0)],
        *[("clip_sample_range", -1.0), ("clip_sample_range", math.nan), ("sample_max_value", 0.5)],
        *[("dynamic_thresholding_ratio", 0.0), ("dynamic_thresholding_ratio", 1.5)],
    ],
)
def test_an_option_that_cannot_be_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        check_noise_schedule(DDPMScheduler(**{**THRESHOLDING, name: value}))


def test_thresholding_that_only_clips_is_refused():
    with pytest.raises(ValueError, match="thresholding is True, and changes nothing: at sample_max_value 1 it clips"):
        check_noise_schedule(DDPMScheduler(thresholding=True))
