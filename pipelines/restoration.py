"""Denoising, inpainting and inversion with a trained network.

All images are in [-1, 1], `(batch, channels, height, width)`.
"""

from collections.abc import Sequence

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, RePaintScheduler, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from torch import Tensor

from denoiser.checks import check_positive, how_to_install, plain_arguments
from pipelines.classes import Label
from pipelines.denoising import CALL_SIZE, DenoisingPipeline, image_generators
from pipelines.noise_levels import predicted_image, predicted_noise
from pipelines.predictor import Predictor
from pipelines.schedulers import build_scheduler
from pipelines.stepping import equal_stride


def estimated_noise(noisy: Tensor) -> Tensor:
    """Estimate the standard deviation of the noise in each image, `(batch,)`.

    From the median of the finest wavelets (Donoho & Johnstone 1994, section 4.2). Image details count
    as noise: at low noise the estimate is a little high.

    Raises:
        ValueError: If the extra `[restore]` is not installed.
    """
    try:
        from skimage.restoration import estimate_sigma
    except ImportError as error:
        raise ValueError(f"the noise cannot be estimated ({error}); {how_to_install('restore')}") from error
    images = rearrange(noisy, "b c h w -> b h w c").cpu().numpy()
    levels = [estimate_sigma(image, average_sigmas=True, channel_axis=-1) for image in images]
    return torch.tensor(levels).nan_to_num(0.0)  # NaN is that of a constant image


@plain_arguments
@torch.no_grad()
def denoised(
    pipeline: DenoisingPipeline,
    noisy: Tensor,
    sigma: float | Tensor | None = None,
    labels: Sequence[Label] | None = None,
) -> Tensor:
    """Denoise images with one network call.

    The result is the posterior mean, by Tweedie's formula (Efron 2011): it has the least squared error
    and is smoother than the clean images.

    Args:
        pipeline: A pipeline; the timestep is the one of equal noise.
        noisy: Images with Gaussian noise.
        sigma: Standard deviation of the noise, one or `(batch,)`; None to estimate it.
        labels: Classes of the images, if known.
    """
    noise_schedule, device = pipeline.noise_schedule, pipeline.unet.device
    signal = noise_schedule.alphas_cumprod.double()
    of_training = ((1 - signal) / signal).sqrt()
    if sigma is None:
        levels = estimated_noise(noisy).double().clamp(of_training[0], of_training[-1])
    else:
        levels = torch.as_tensor(sigma, dtype=torch.float64).flatten()
        if len(levels) not in (1, len(noisy)):
            raise ValueError(f"{len(levels)} values of sigma for {len(noisy)} images; give one, or one for each image")
        levels = levels.expand(len(noisy))
    if not ((levels > 0) & (levels <= of_training[-1])).all():
        raise ValueError(
            f"sigma is {float(levels.min()):g} to {float(levels.max()):g}; it must be above 0 and up to "
            f"{float(of_training[-1]):g}, the most noise that the network was trained with"
        )
    timesteps = (of_training.log() - levels.log()[:, None]).abs().argmin(dim=1).to(device)
    scaled = (noisy / rearrange((1 + levels.float() ** 2).sqrt(), "b -> b 1 1 1")).to(device)
    prediction = _predictor(pipeline, len(noisy), labels)(scaled, timesteps)
    return predicted_image(noise_schedule, scaled, prediction, timesteps).clamp(-1, 1)


@plain_arguments
@torch.no_grad()
def inpainted(
    pipeline: DenoisingPipeline,
    images: Tensor,
    known: Tensor,
    labels: Sequence[Label] | None = None,
    steps: int = 50,
    jump_length: int = 10,
    resamplings: int = 5,
    seed: int = 0,
) -> Tensor:
    """Inpaint images with RePaint (Lugmayr et al. 2022).

    Args:
        pipeline: A pipeline.
        images: Images; unknown pixels are ignored.
        known: 1 for known pixels and 0 for those to fill; broadcasts to the images.
        labels: Classes of the images, if known.
        steps: Denoising steps; they divide the number of training timesteps.
        jump_length: Steps in a jump back.
        resamplings: Number of times that each step is taken, except the noisiest `jump_length`.
        seed: Image i depends on (seed, i).
    """
    if not isinstance(known, Tensor):
        raise ValueError(f"the mask is a {type(known).__name__}; give a tensor, {tuple(images.shape)}")
    if known.ndim != 4 or any(side not in (1, full) for side, full in zip(known.shape, images.shape, strict=True)):
        raise ValueError(f"the mask is {tuple(known.shape)}, the images are {tuple(images.shape)}; they do not fit")
    if not ((known == 0) | (known == 1)).all():
        raise ValueError("the mask has other values than 0 (to be filled) and 1 (known)")
    if not known.flatten(1).any(dim=1).all():
        raise ValueError("the mask leaves no known pixel; scripts/sample.py generates whole images")
    check_positive(jump_length=jump_length, resamplings=resamplings)
    noise_schedule, device = pipeline.noise_schedule, pipeline.unet.device
    stride = equal_stride(steps, pipeline.scheduler)
    scheduler = build_scheduler(RePaintScheduler, pipeline.scheduler.config, eta=1.0)  # DDPM's noise, as in the paper
    scheduler.set_timesteps(steps, jump_length, resamplings, device=device)
    scheduler.timesteps += stride - 1  # trailing: from the noisiest timestep
    predict = _predictor(pipeline, len(images), labels)
    generators = image_generators(seed, range(len(images)))
    images, known = images.to(device), known.to(device, images.dtype)
    sample = randn_tensor(tuple(images.shape), generator=generators, device=device)
    signal = torch.cat([torch.ones(stride), scheduler.alphas_cumprod]).to(device)  # of timestep t at t + stride
    last = scheduler.timesteps[0] + 1
    for timestep in scheduler.timesteps:
        if timestep < last:
            noise = predicted_noise(noise_schedule, sample, predict(sample, timestep), timestep)
            sample = scheduler.step(noise, timestep, sample, images, known, generators).prev_sample
        else:  # one step back; the scheduler's own `undo_step` uses the noise of other timesteps
            kept = signal[last + stride] / signal[last]
            noise = randn_tensor(tuple(sample.shape), generator=generators, device=device)
            sample = kept.sqrt() * sample + (1 - kept).sqrt() * noise
        last = timestep
    return (known * images + (1 - known) * sample).clamp(-1, 1)


@plain_arguments
@torch.no_grad()
def inverted(
    pipeline: DenoisingPipeline,
    images: Tensor,
    labels: Sequence[Label] | None = None,
    steps: int = 20,
    iterations: int = 10,
) -> Tensor:
    """Return the noise from which DDIM generates these images (Song et al. 2021, section 4.3).

    Each DDIM step is inverted by fixed-point iteration (Pan et al. 2023). The noisiest step is left
    out: its signal is too weak to invert.

    Args:
        pipeline: A pipeline.
        images: Images to invert.
        labels: Classes of the images, if known.
        steps: DDIM steps, at least 2; they divide the number of training timesteps.
        iterations: Network calls in a step; 1 is plain DDIM inversion.
    """
    check_positive(iterations=iterations)
    predict, noise_schedule = _predictor(pipeline, len(images), labels), pipeline.noise_schedule
    scheduler = _ddim(DDIMInverseScheduler, pipeline, steps)
    sample = images.to(pipeline.unet.device)
    for timestep in scheduler.timesteps[:-1]:
        noisier = sample
        for _ in range(iterations):
            noise = predicted_noise(noise_schedule, noisier, predict(noisier, timestep), timestep)
            noisier = scheduler.step(noise, timestep, sample).prev_sample
        sample = noisier
    return sample


@plain_arguments
@torch.no_grad()
def reconstructed(
    pipeline: DenoisingPipeline, noisy: Tensor, labels: Sequence[Label] | None = None, steps: int = 20
) -> Tensor:
    """Return the images that DDIM generates from the result of `inverted`.

    Args:
        pipeline: A pipeline.
        noisy: Result of `inverted` with as many steps.
        labels: Classes of the images; other classes than in `inverted` edit the images.
        steps: DDIM steps, at least 2; they divide the number of training timesteps.
    """
    predict, noise_schedule = _predictor(pipeline, len(noisy), labels), pipeline.noise_schedule
    scheduler = _ddim(DDIMScheduler, pipeline, steps)
    for timestep in scheduler.timesteps[1:]:
        noise = predicted_noise(noise_schedule, noisy, predict(noisy, timestep), timestep)
        noisy = scheduler.step(noise, timestep, noisy).prev_sample
    return noisy.clamp(-1, 1)


def _ddim(scheduler_class: type[SchedulerMixin], pipeline: DenoisingPipeline, steps: int) -> SchedulerMixin:
    equal_stride(steps, pipeline.scheduler)  # required by DDIMInverseScheduler
    if steps < 2:
        raise ValueError(f"steps is {steps}; give at least 2, the noisiest of which is left out")
    config = {**pipeline.scheduler.config, "prediction_type": "epsilon"}
    scheduler = build_scheduler(scheduler_class, config, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps, device=pipeline.unet.device)
    return scheduler


def _predictor(pipeline: DenoisingPipeline, count: int, labels: Sequence[Label] | None) -> Predictor:
    classes = None if labels is None else pipeline.classes.read(labels, count).to(pipeline.unet.device)
    return Predictor(pipeline.unet, pipeline.scheduler, classes, call_size=CALL_SIZE)
