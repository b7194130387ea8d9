"""Every scheduler class of diffusers in the pipeline: it draws what it should, or one line says why it cannot."""

import copy
import functools
import json
import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from pipelines import SCHEDULERS, DenoisingPipeline, load_pipeline, make_scheduler
from pipelines.stepping import adds_noise
from tests.conftest import tiny_unet

DDPM = {
    *("CogVideoXDDIMScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler"),
    *("TCDScheduler", "UnCLIPScheduler", "UniPCMultistepScheduler"),
}
FLOW = {
    *("FlowMapEulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    *("FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler"),
}
EDM = {"CosineDPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"}
UNTOLD = {"CMStochasticIterativeScheduler"}  # which do not tell their noise levels
WORKING = DDPM | FLOW | EDM | UNTOLD | {"IPNDMScheduler"}
# What the constructors of some classes need.
NEEDED = {
    "AmusedScheduler": {"mask_token_id": 3},
    "VQDiffusionScheduler": {"num_vec_classes": 4},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
}
CLASSES = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
INSTALLED = [name for name in CLASSES if not hasattr(getattr(diffusers, name), "_backends")]
UNET = tiny_unet(block_out_channels=(16,), attention_levels=())
SPREAD = 0.15  # standard deviation of the data, far from the range that samplers clip to


@functools.cache  # the constructors of some take a second
def scheduler_of(name):
    return getattr(diffusers, name)(**NEEDED.get(name, {}))


def pipeline_with(name, unet=None, **options):
    scheduler = getattr(diffusers, name)(**options) if options else copy.deepcopy(scheduler_of(name))
    pipeline = DenoisingPipeline(unet or UNET, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline, **options):
    """Return the images, or the one line that says why there are none."""
    randomness = {} if "seed" in options else {"generator": torch.Generator().manual_seed(0)}
    defaults = {"batch_size": 2, "num_inference_steps": 4, "output_type": "pt"}
    try:
        return pipeline(**{**defaults, **randomness, **options}).images
    except ValueError as error:
        message = str(error)
    assert type(pipeline.scheduler).__name__ in message
    assert "\n" not in message
    return message


def made(name, config):
    """Return the named sampler for a config, or the one line that says why there is none."""
    try:
        return make_scheduler(name, config)
    except ValueError as error:
        return str(error)


USES = {
    "no labels": {},
    "labels": {"class_labels": [1, 2]},
    "guidance": {"class_labels": 3, "guidance_scale": 2.0},
    "an interval": {"class_labels": 3, "guidance_scale": 2.0, "guidance_interval": (0.2, 5.0)},
    "a callback": {"callback_on_step_end": lambda *_: None},
    "one tensor": {"callback_on_step_end": lambda *_: None, "callback_on_step_end_tensor_inputs": ["sample"]},
    "seeds": {"seed": [5, 3]},
    "an image": {"image": torch.zeros(2, 1, 16, 16), "strength": 1.0},
    "half an image": {"image": torch.zeros(2, 1, 16, 16), "strength": 0.5},
}
REFUSED = {
    ("PNDMScheduler", "half an image"),
    *((name, use) for name in UNTOLD for use in ("an interval", "a callback")),
}


@pytest.mark.parametrize("name", INSTALLED)
def test_each_use_of_each_scheduler_draws_or_says_why_not(name):
    pipeline = pipeline_with(name)
    for use, options in USES.items():
        images = drawn(pipeline, **options)
        refused = name not in WORKING or (name, use) in REFUSED
        assert isinstance(images, str) == refused, (use, images)
        if not refused:
            assert images.shape == (2, 1, 16, 16)
            assert images.dtype == torch.float32
            assert images.isfinite().all()


@pytest.mark.parametrize("name", INSTALLED)
def test_each_scheduler_is_saved_and_loaded_with_its_images(name, tmp_path):
    pipeline = pipeline_with(name)
    images = drawn(pipeline, class_labels=[1, 2])
    pipeline.save_pretrained(tmp_path)
    again = drawn(load_pipeline(tmp_path), class_labels=[1, 2])
    assert torch.equal(again, images) if name in WORKING else again == images


@pytest.mark.parametrize("name", sorted(WORKING & {*INSTALLED}))
def test_an_image_is_the_same_whatever_else_is_drawn_with_any_scheduler(name):
    pipeline = pipeline_with(name)
    assert torch.equal(drawn(pipeline, batch_size=1, seed=0), drawn(pipeline, batch_size=3, seed=0)[:1])


@pytest.mark.parametrize("name", INSTALLED)
def test_another_sampler_has_the_noise_levels_of_the_scheduler_or_says_that_they_are_no_ddpms(name):
    scheduler = pipeline_with(name).scheduler
    other = made("lcm" if "original_inference_steps" in scheduler.config else "ddim", scheduler.config)
    if isinstance(other, str):
        assert "so that its noise levels are not a DDPM's; save the pipeline with the DDPMScheduler" in other
        assert name not in DDPM - {"CogVideoXDDIMScheduler", "UnCLIPScheduler"}
    else:
        torch.testing.assert_close(other.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in INSTALLED])
def test_a_saved_scheduler_whose_package_is_missing_is_named(name, tmp_path):
    pipeline_with("DDPMScheduler").save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    config = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**config, "scheduler": ["diffusers", name]}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"cannot be loaded as a pipeline: .*{name}"):
        load_pipeline(tmp_path)


class GaussianOracle(ModelMixin, ConfigMixin):
    """The exact prediction for Gaussian data, told from the process that a scheduler stands for."""

    @register_to_config
    def __init__(self, sample_size=16, in_channels=1):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))  # which gives a dtype and a device

    def watch(self, scheduler):
        self.scheduler, self.clean = scheduler, []
        return self

    def forward(self, sample, timestep):
        image, noise = self.level(float(timestep[0]))
        clean = image * SPREAD**2 * sample / (image**2 * SPREAD**2 + noise**2)  # E[x_0 | x_t]
        self.clean.append(clean)
        return UNet2DOutput(sample=self.prediction(sample, clean, image, noise))

    def level(self, timestep):
        """Return the factors of image and noise in what the network sees."""
        name, config = type(self.scheduler).__name__, self.scheduler.config
        if name in FLOW:
            return 1 - timestep / 1000, timestep / 1000
        if name in EDM:
            sigma = math.tan(timestep * math.pi / 2) if name.startswith("Cosine") else math.exp(4 * timestep)
            return 1 / math.hypot(sigma, config.sigma_data), sigma / math.hypot(sigma, config.sigma_data)
        if name == "IPNDMScheduler":
            return math.cos(timestep * math.pi / 2), math.sin(timestep * math.pi / 2)
        signal = self.scheduler.alphas_cumprod.double().numpy()
        sigma = np.exp(np.interp(timestep, np.arange(len(signal)), np.log((1 - signal) / signal) / 2))
        return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)

    def prediction(self, sample, clean, image, noise):
        name, config = type(self.scheduler).__name__, self.scheduler.config
        predicted_noise = (sample - image * clean) / noise
        if name in EDM:
            sigma, data = noise / image, config.sigma_data
            skipped = data**2 / (sigma**2 + data**2) * sample / image
            sign = -1 if config.prediction_type == "v_prediction" else 1
            return sign * (clean - skipped) * math.hypot(sigma, data) / (sigma * data)
        if name in FLOW:
            return predicted_noise - clean
        velocity = image * predicted_noise - noise * clean
        return predicted_noise if config.get("prediction_type") == "epsilon" else velocity


def oracle_with(name, **options):
    unet = GaussianOracle()
    pipeline = pipeline_with(name, unet, **options)
    unet.watch(pipeline.scheduler)
    return pipeline


@pytest.mark.parametrize("name", sorted(WORKING & {*INSTALLED}))
def test_it_is_known_which_schedulers_add_noise_of_their_own(name):
    pipeline = pipeline_with(name) if name in UNTOLD else oracle_with(name)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    one, other = (drawn(pipeline, noise=torch.ones(2, 1, 16, 16), generator=each) for each in generators)
    assert adds_noise(pipeline.scheduler) == (not torch.equal(one, other))


# Consistency samplers draw from the means that the oracle predicts, which spread less than the data.
SPREADING = sorted((WORKING - UNTOLD - {"FlowMatchLCMScheduler", "LCMScheduler"}) & {*INSTALLED})


@pytest.mark.parametrize("name", SPREADING)
def test_each_scheduler_draws_the_spread_of_the_data_and_tells_the_clean_images(name):
    options = {"sigma_min": 0.01} if name.startswith("Cosine") else {}  # its default ends at the noise of audio
    pipeline, told = oracle_with(name, **options), []
    images = drawn(
        pipeline,
        batch_size=8,
        num_inference_steps=50,
        callback_on_step_end=lambda *given: told.append(given[3]["clean"]),
    )
    for clean, expected in zip(told, pipeline.unet.clean, strict=True):
        torch.testing.assert_close(clean, expected, atol=1e-3, rtol=1e-3)
    assert float((2 * images - 1).std()) == pytest.approx(SPREAD, rel=0.3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ],
)
def test_the_clean_images_are_right_with_other_sigmas_too(name, options):
    pipeline, told = pipeline_with(name, **options), []

    def watch(_, step, timestep, tensors):
        told.append(tensors["clean"])

    images = drawn(pipeline, num_inference_steps=10, callback_on_step_end=watch)
    torch.testing.assert_close((told[-1] / 2 + 0.5).clamp(0, 1), images, atol=0.02, rtol=0)


def test_guidance_in_an_interval_goes_by_the_noise_level_of_a_flow():
    pipeline = pipeline_with("FlowMatchEulerDiscreteScheduler")
    options = {"num_inference_steps": 10, "class_labels": 3, "guidance_scale": 3.0}
    everywhere, nowhere = (drawn(pipeline, **options, guidance_interval=each) for each in ((0.0, math.inf), (1e6, 1e7)))
    torch.testing.assert_close(everywhere, drawn(pipeline, **options))
    torch.testing.assert_close(nowhere, drawn(pipeline, **{**options, "guidance_scale": 1.0}))
    assert not torch.allclose(drawn(pipeline, **options, guidance_interval=(0.0, 1.0)), everywhere, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "steps", "message"),
    [
        ("DDIMScheduler", {"steps_offset": 1}, 1000, "has timesteps from 1000 to 1 in 1000 steps, and the"),
        ("PNDMScheduler", {}, 3, "3 inference steps were asked for; the sampler takes 4 to 1000"),
        ("UnCLIPScheduler", {}, 1, "1 inference steps were asked for; the sampler takes 2 to 1000"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, 4, "cannot set its timesteps: `mu` must"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, 4, "its timesteps rising from 0 to 999"),
        ("DDIMInverseScheduler", {}, 1, "it leads images to noise"),
        ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, 4, "cannot take step 1 of 4: predict"),
        ("RePaintScheduler", {}, 4, "its steps need mask and original_image as well; choose another scheduler"),
        ("ScoreSdeVeScheduler", {}, 4, "it has no method step; choose another scheduler"),
        ("HeliosScheduler", {}, 4, "it may want more than a loop over its timesteps (KeyError: None)"),
        ("CMStochasticIterativeScheduler", {}, 41, "takes 1 to 40"),
    ],
)
def test_what_a_scheduler_cannot_do_is_said_with_its_name(name, options, steps, message):
    assert message in drawn(pipeline_with(name, **options), num_inference_steps=steps)


def test_what_is_wrong_in_the_network_is_not_laid_at_the_schedulers_door():
    pipeline = pipeline_with("DDIMScheduler", tiny_unet())
    pipeline.unet.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drawn(pipeline)


def test_images_that_are_not_finite_are_an_error_that_names_the_step_and_the_remedy():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False, timestep_spacing="trailing")
    pipeline = DenoisingPipeline(UNET, scheduler)
    message = r"the images of DDIMScheduler are not finite from step 1 of 4 on; .* predicts epsilon .* use v_prediction"
    with pytest.raises(FloatingPointError, match=message):
        drawn(pipeline)
    pipeline = pipeline_with("DDIMScheduler")
    with pytest.raises(FloatingPointError, match="from step 3 of 4 on"):
        drawn(pipeline, callback_on_step_end=lambda *given: {"sample": given[3]["sample"] / (given[1] != 1)})


LEVELS = [
    *({"num_train_timesteps": count} for count in (1, 2, 3, 5)),
    *({"num_train_timesteps": count, "rescale_betas_zero_snr": True} for count in (1, 2, 5)),
    *({"trained_betas": [beta] * 10} for beta in (0.0, 1.0, -0.1, 2.0, math.nan)),
    *({"trained_betas": [0.1] * 5 + last} for last in ([0.0] * 5, [1.0] * 5, [0.1] * 4)),
    *({"beta_start": start, "beta_end": end} for start, end in ((0.0, 0.0), (0.5, 1.0), (1e-4, 20.0), (0.02, 1e-4))),
    *({"beta_schedule": each} for each in ("scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")),
    *({"rescale_betas_zero_snr": True, "beta_schedule": each} for each in ("linear", "squaredcos_cap_v2", "laplace")),
]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_noise_schedule_ends_in_images_that_are_not_finite(name, prediction_type):
    scheduled = 0
    for levels in LEVELS:
        levels = {"num_train_timesteps": 10, "prediction_type": prediction_type, **levels}
        scheduler = made(name, DDPMScheduler(**levels).config)
        if isinstance(scheduler, str):
            assert scheduler.startswith(f"scheduler '{name}' cannot take this noise schedule or network: ")
            continue
        pipeline = DenoisingPipeline(UNET, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        images = drawn(pipeline, num_inference_steps=min(2, scheduler.config.num_train_timesteps))
        assert images.isfinite().all()
        scheduled += 1
    assert scheduled >= 6 or (name, prediction_type) == ("euler-ancestral", "sample")
