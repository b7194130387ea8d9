"""Which noise levels count for how much: how often a timestep is drawn, and how its loss is weighted."""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

MIN_SNR_GAMMA = 5.0


def signal_to_noise(scheduler: DDPMScheduler) -> Tensor:
    """Return the ratio of the powers of image and noise at each timestep, `(num_train_timesteps,)` in float64."""
    signal = scheduler.alphas_cumprod.cpu().double()  # not every device has float64
    return signal / (1 - signal)


def loss_weights(scheduler: DDPMScheduler, weighting: str) -> Tensor:
    """Return the weight of each timestep's loss, `(num_train_timesteps,)` in float32.

    With x_t = a x_0 + s e, an error of the noise e is an error of the velocity times a, and one of the image times
    a / s. So weights turn the squared error of what the network predicts into that of the noise:

    - "prediction": 1; the error of what the network predicts.
    - "noise": the error of the noise (Ho et al. 2020, eq. 14).
    - "min_snr": the same times min(1, gamma / SNR), which spends less on the cleanest images (Hang et al. 2023, eq. 8;
      there min(SNR, gamma) for the error of the image).

    Raises:
        ValueError: If the weighting or the scheduler's prediction type is unknown, or a timestep without noise would
            have an infinite weight.
    """
    if weighting == "prediction":
        return torch.ones(len(scheduler.alphas_cumprod))
    snr, prediction_type = signal_to_noise(scheduler), scheduler.config.prediction_type
    signal = 1 - 1 / (1 + snr)  # so it is 1 where the ratio is infinite
    to_noise = {"epsilon": torch.ones_like(snr), "v_prediction": signal, "sample": snr}
    by_weighting = {"noise": torch.ones_like(snr), "min_snr": (MIN_SNR_GAMMA / snr).clamp(max=1)}
    for known, name in ((by_weighting, weighting), (to_noise, prediction_type)):
        if name not in known:
            raise ValueError(f"'{name}' is none of {', '.join(known)}")
    weights = to_noise[prediction_type] * by_weighting[weighting]
    if not weights.isfinite().all():
        raise ValueError(
            f"loss_weighting {weighting}: the schedule has a timestep without noise, where the error of the image says "
            "nothing of the noise; use loss_weighting prediction, or betas above 0"
        )
    return weights.float()


def timestep_table(scheduler: DDPMScheduler, log_normal: tuple[float, float] | None) -> Tensor:
    """Return what turns a uniform draw of a timestep into a draw of the wanted noise levels, by indexing.

    So a stratified draw stays stratified.

    Args:
        scheduler: Its noise levels are sigma = 1 / sqrt(SNR).
        log_normal: Mean and standard deviation of ln(sigma) (Karras et al. 2022, table 1); None for uniform timesteps.

    Returns:
        `(num_train_timesteps,)` timesteps in ascending order.
    """
    count = len(scheduler.alphas_cumprod)
    if log_normal is None:
        return torch.arange(count)
    log_sigma = -signal_to_noise(scheduler).log() / 2
    mean, deviation = log_normal
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels = mean + deviation * torch.special.ndtri(quantiles)
    between = (log_sigma[1:] + log_sigma[:-1]) / 2
    return torch.searchsorted(between, levels)
