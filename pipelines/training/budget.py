"""How long a run lasts, and the learning rate that follows from it."""

import math
import time

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


class Budget:
    """Steps, or minutes by the clock, or both: the run ends with whichever comes first.

    Args:
        max_steps: Optimizer steps, or None.
        max_minutes: Minutes, or None.
        seconds_before: Time that the run had taken when it was interrupted.
    """

    def __init__(self, max_steps: int | None, max_minutes: float | None, seconds_before: float = 0.0) -> None:
        self.max_steps = max_steps
        self.max_seconds = None if max_minutes is None else 60 * max_minutes
        self.seconds_before = seconds_before
        self.started: float | None = None

    def start(self) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time that the run has taken, interruptions aside."""
        running = 0.0 if self.started is None else time.perf_counter() - self.started
        return self.seconds_before + running

    def progress(self, step: int, accelerator: Accelerator) -> float:
        """Return how much of the budget is used after `step` steps: 0 at the start, 1 or more at the end."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        if self.max_seconds is None:
            return by_steps
        seconds = [self.seconds]
        if accelerator.num_processes > 1:
            broadcast_object_list(seconds)  # one clock for all, or they would stop at different steps
        return max(by_steps, seconds[0] / self.max_seconds)


def learning_rate(peak: float, warmup_steps: int, step: int, progress: float) -> float:
    """Rise linearly over the warm-up and fall to zero along a cosine (Loshchilov & Hutter 2017, eq. 5).

    Args:
        peak: The rate that the warm-up leads to.
        warmup_steps: Its length.
        step: Optimizer steps taken.
        progress: Share of the budget used, 0 to 1.
    """
    return peak * min(1.0, (step + 1) / warmup_steps) * (1 + math.cos(math.pi * progress)) / 2
