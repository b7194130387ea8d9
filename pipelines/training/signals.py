"""Signals that end a run after its current step, with a checkpoint."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Self

import torch
from accelerate import Accelerator

from denoiser.environment import launcher

# Exit statuses. A run stopped by its user or by Slurm (--signal=USR1) ends with 0.
STATUS_BY_NAME = {"SIGINT": 0, "SIGUSR1": 0, "SIGTERM": 143}
EXIT_STATUS = {signal.Signals[name]: status for name, status in STATUS_BY_NAME.items() if hasattr(signal, name)}
SAME_SIGNAL = 1.0


class StopSignals:
    """Context that records the first stop signal. A second SIGINT raises `KeyboardInterrupt`.

    A terminal's SIGINT reaches a process both directly and through its launcher, so one within
    `SAME_SIGNAL` seconds of the first is ignored. `accelerate launch` may die of a signal without
    passing it on; the process then has another parent, which counts as SIGTERM. Outside of the main
    thread, signals are not handled.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self.interrupted: float | None = None  # when SIGINT first came
        self.launcher = os.getppid() if launcher() else None

    def __enter__(self) -> Self:
        """Install the handlers."""
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in EXIT_STATUS}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the former handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def agreed(self, accelerator: Accelerator) -> signal.Signals | None:
        """Return the signal that any process got, the same on all; every process has to call this."""
        if self.launcher not in (None, os.getppid()):
            self.noted = self.noted or signal.SIGTERM
        if accelerator.num_processes == 1:
            return self.noted
        number = torch.tensor(int(self.noted or 0), device=accelerator.device)
        highest = int(accelerator.gather(number).max())
        return signal.Signals(highest) if highest else None

    def _note(self, number: int, _: FrameType | None) -> None:
        self.noted = self.noted or signal.Signals(number)
        if number == signal.SIGINT:
            self.interrupted = self.interrupted or time.monotonic()
            if time.monotonic() - self.interrupted > SAME_SIGNAL:
                raise KeyboardInterrupt
