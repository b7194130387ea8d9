"""The figures of the steps since the last line of metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

QUARTERS = 4


class Window:
    """Sums over some steps: the loss by quarter of the timesteps, and where the time went.

    Args:
        num_timesteps: Training timesteps of the scheduler.
        device: Where the losses are.
    """

    def __init__(self, num_timesteps: int, device: torch.device) -> None:
        self.num_timesteps = num_timesteps
        self.loss_sums = torch.zeros(QUARTERS, device=device)
        self.counts = torch.zeros(QUARTERS, device=device)
        self.gradient_norms: list[Tensor] = []  # one a step, before clipping
        self.steps = self.skipped = self.images = 0
        self.seconds = {"step": 0.0, "data": 0.0}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that the block takes to `seconds[what]`."""
        started = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - started

    def count_step(self, images: int, skipped: bool) -> None:
        """Add a step that took `images` images through the network, in all processes together."""
        self.steps += 1
        self.skipped += skipped
        self.images += images

    @property
    def images_per_second(self) -> float:
        """Speed of the steps."""
        return self.images / self.seconds["step"]

    def count(self, losses: Tensor, timesteps: Tensor) -> None:
        """Add the loss of each image, `(batch,)`, at its timestep, `(batch,)`; those that are not finite count not."""
        finite = losses.isfinite()
        sums, counts = _sums_by_quarter(losses[finite], timesteps[finite], self.num_timesteps)
        self.loss_sums += sums
        self.counts += counts

    def summary(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes; a quarter that no timestep fell into is left out."""
        sums, counts = accelerator.reduce(torch.stack([self.loss_sums, self.counts]), reduction="sum").cpu()
        return {
            **_means(sums, counts),
            **({"gradient_norm": torch.stack(self.gradient_norms).mean().item()} if self.gradient_norms else {}),
            "skipped_steps": self.skipped,
            "images_per_second": self.images_per_second,
            "step_milliseconds": 1000 * self.seconds["step"] / self.steps,
            "data_milliseconds": 1000 * self.seconds["data"] / self.steps,
        }


def loss_by_quarter(losses: Tensor, timesteps: Tensor, num_timesteps: int) -> dict[str, float]:
    """Return the mean of the images' losses, `(count,)`, over all and by quarter of their timesteps, `(count,)`."""
    return _means(*_sums_by_quarter(losses, timesteps, num_timesteps))


def _sums_by_quarter(losses: Tensor, timesteps: Tensor, num_timesteps: int) -> tuple[Tensor, Tensor]:
    quarter = timesteps * QUARTERS // num_timesteps
    zeros = torch.zeros(QUARTERS, device=losses.device)
    return zeros.index_add(0, quarter, losses), zeros.index_add(0, quarter, torch.ones_like(losses))


def _means(sums: Tensor, counts: Tensor) -> dict[str, float]:
    by_quarter = {
        f"loss_quarter_{quarter + 1}": (sums[quarter] / counts[quarter]).item()
        for quarter in range(QUARTERS)
        if counts[quarter]
    }
    return {**({"loss": (sums.sum() / counts.sum()).item()} if counts.any() else {}), **by_quarter}
