"""Length of a run, and the learning rate that follows it."""

import math
import time

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


class Budget:
    """Budget of optimizer steps, of minutes, or of both, whichever ends first."""

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
        """Wall-clock time of the run, without interruptions."""
        running = 0.0 if self.started is None else time.perf_counter() - self.started
        return self.seconds_before + running

    def progress(self, step: int, accelerator: Accelerator) -> float:
        """Return the fraction of the budget used after `step` steps, 1 or more at the end."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        if self.max_seconds is None:
            return by_steps
        seconds = [self.seconds]
        if accelerator.num_processes > 1:
            broadcast_object_list(seconds)  # one clock for all, or they would stop at different steps
        return max(by_steps, seconds[0] / self.max_seconds)


def learning_rate(peak: float, warmup_steps: int, step: int, progress: float) -> float:
    """Return the learning rate: linear warm-up, cosine decay to 0 (Loshchilov & Hutter 2017, eq. 5)."""
    return peak * min(1.0, (step + 1) / warmup_steps) * (1 + math.cos(math.pi * progress)) / 2
