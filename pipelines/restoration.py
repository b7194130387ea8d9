"""Restoration with a denoiser: noise taken away, holes filled, images led back to the noise they would come from.

All images here are in [-1, 1], `(batch, channels, height, width)`.
"""

from collections.abc import Sequence

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, RePaintScheduler, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from skimage.restoration import estimate_sigma
from torch import Tensor

from denoiser.checks import check_positive
from denoiser.plain import plain_arguments
from pipelines.classes import Label
from pipelines.denoising import CALL_SIZE, DenoisingPipeline, image_generators
from pipelines.predictor import Predictor, predicted_image, predicted_noise
from pipelines.schedulers import build_scheduler, equal_stride


def estimated_noise(noisy: Tensor) -> Tensor:
    """Return the standard deviation of the noise in each image, `(batch,)`, from its finest wavelets' median.

    Donoho & Johnstone (1994), section 4.2. Details of the image count as noise: it is a little too high at low noise.
    """
    images = rearrange(noisy, "b c h w -> b h w c").cpu().numpy()
    levels = [estimate_sigma(image, average_sigmas=True, channel_axis=-1) for image in images]
    return torch.tensor(levels).nan_to_num(0.0)  # which images without any detail have


@plain_arguments
@torch.no_grad()
def denoised(
    pipeline: DenoisingPipeline,
    noisy: Tensor,
    sigma: float | Tensor | None = None,
    labels: Sequence[Label] | None = None,
) -> Tensor:
    """Return the mean of the clean images that noisy ones may come from, by one call of the network.

    That mean has the least squared error of all answers, and is smoother than any one of them. It follows from the
    predicted noise by Tweedie's formula (Efron 2011).

    Args:
        pipeline: Its network; the timestep is the one of equal noise.
        noisy: Images plus Gaussian noise.
        sigma: Standard deviation of that noise, one or `(batch,)`; None to estimate it from the images.
        labels: Their classes, if known.

    Raises:
        ValueError: If sigma is not above 0, beyond the noise that the network was trained with, or not one an image.
    """
    noise_schedule, device = _noise_schedule(pipeline), pipeline.unet.device
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
    """Fill the unknown pixels, by denoising them beside the known ones, noised alike (Lugmayr et al. 2022, RePaint).

    Args:
        pipeline: Whose network.
        images: What is unknown of them counts for nothing.
        known: 1 where a pixel is known, 0 where it is to be filled; shaped as the images, or with sides of 1 for all
            images or channels alike.
        labels: The images' classes, if known.
        steps: Steps of the denoising; they divide the number of training timesteps.
        jump_length: Steps that are taken back and again, so that both parts come to agree.
        resamplings: How often each step is taken but the noisiest `jump_length`; 1 is never again.
        seed: Image i is filled by (seed, i).

    Raises:
        ValueError: If the mask does not fit or leaves nothing, or a count is wrong.
    """
    if not isinstance(known, Tensor):
        raise ValueError(f"the mask is a {type(known).__name__}; give a tensor, {tuple(images.shape)}")
    if known.ndim != 4 or any(side not in (1, full) for side, full in zip(known.shape, images.shape, strict=True)):
        raise ValueError(f"the mask is {tuple(known.shape)}, the images are {tuple(images.shape)}; they do not fit")
    if not ((known == 0) | (known == 1)).all():
        raise ValueError("the mask has other values than 0 (to be filled) and 1 (known)")
    if not known.flatten(1).any(dim=1).all():
        raise ValueError("the mask leaves no pixel that is known; to draw whole images is what scripts/sample.py does")
    check_positive(jump_length=jump_length, resamplings=resamplings)
    noise_schedule, device = _noise_schedule(pipeline), pipeline.unet.device
    stride = equal_stride(steps, pipeline.scheduler)
    scheduler = build_scheduler(RePaintScheduler, pipeline.scheduler.config, eta=1.0)  # DDPM's noise, as in the paper
    scheduler.set_timesteps(steps, jump_length, resamplings, device=device)
    scheduler.timesteps += stride - 1  # to start from the noisiest, where pure noise belongs
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
        else:  # noise a step's worth again, which the scheduler's own `undo_step` does with other timesteps' noise
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
    """Return the noisy images that DDIM leads to these images (Song et al. 2021, section 4.3).

    Each step of DDIM is undone by iterating to the point that it comes from (Pan et al. 2023), where plain inversion
    takes the prediction at the point that it goes to. The noisiest step is left out: its signal is too weak to undo.

    Args:
        pipeline: Whose network.
        images: Where to end.
        labels: Their classes, if known.
        steps: Steps of DDIM, at least 2; they divide the number of training timesteps.
        iterations: Calls of the network in a step; 1 is plain inversion.

    Returns:
        What `reconstructed` starts from, shaped as the images; close to Gaussian noise.
    """
    check_positive(iterations=iterations)
    predict, noise_schedule = _predictor(pipeline, len(images), labels), _noise_schedule(pipeline)
    scheduler = _ddim(DDIMInverseScheduler, pipeline, steps)  # which takes another prediction to be at another level
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
    """Return the images that DDIM leads to from what `inverted` gave; with other labels, other images of the same make.

    Args:
        pipeline: Whose network.
        noisy: From `inverted`, with as many steps.
        labels: Classes of the images.
        steps: Steps of DDIM, at least 2; they divide the number of training timesteps.
    """
    predict, noise_schedule = _predictor(pipeline, len(noisy), labels), _noise_schedule(pipeline)
    scheduler = _ddim(DDIMScheduler, pipeline, steps)
    for timestep in scheduler.timesteps[1:]:
        noise = predicted_noise(noise_schedule, noisy, predict(noisy, timestep), timestep)
        noisy = scheduler.step(noise, timestep, noisy).prev_sample
    return noisy.clamp(-1, 1)


def _noise_schedule(pipeline: DenoisingPipeline) -> DDPMScheduler:
    """Return the noise schedule that the network was trained with, whatever the pipeline draws with."""
    return build_scheduler(DDPMScheduler, pipeline.scheduler.config)


def _ddim(scheduler_class: type[SchedulerMixin], pipeline: DenoisingPipeline, steps: int) -> SchedulerMixin:
    equal_stride(steps, pipeline.scheduler)  # which DDIMInverseScheduler takes
    if steps < 2:
        raise ValueError(f"steps is {steps}; give at least 2, the noisiest of which is left out")
    config = {**pipeline.scheduler.config, "prediction_type": "epsilon"}
    scheduler = build_scheduler(scheduler_class, config, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps, device=pipeline.unet.device)
    return scheduler


def _predictor(pipeline: DenoisingPipeline, count: int, labels: Sequence[Label] | None) -> Predictor:
    classes = None if labels is None else pipeline.classes.read(labels, count).to(pipeline.unet.device)
    return Predictor(pipeline.unet, pipeline.scheduler, classes, call_size=CALL_SIZE)
