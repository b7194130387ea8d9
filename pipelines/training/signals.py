"""Signals that ask a run to end: it finishes its step and saves first."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Self

import torch
from accelerate import Accelerator

from denoiser.environment import launcher

# What the process ends with: a run that its user or its scheduler (Slurm's --signal=USR1) stops ends well.
STATUS_BY_NAME = {"SIGINT": 0, "SIGUSR1": 0, "SIGTERM": 143}
EXIT_STATUS = {signal.Signals[name]: status for name, status in STATUS_BY_NAME.items() if hasattr(signal, name)}
SAME_SIGNAL = 1.0


class StopSignals:
    """Notes the first of the signals while the block runs; a second SIGINT stops at once, as it always does.

    A launcher passes on the SIGINT of a terminal that has reached its processes too, so a second one within
    `SAME_SIGNAL` seconds is the first.

    A launcher that a signal ends without passing it on, as `accelerate launch` is, leaves its processes to another
    parent: that counts as SIGTERM. Outside of the main thread, where Python lets nobody listen, signals do what they
    would do without it.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self.interrupted: float | None = None  # when SIGINT first came
        self.launcher = os.getppid() if launcher() else None

    def __enter__(self) -> Self:
        """Listen."""
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in EXIT_STATUS}
        return self

    def __exit__(self, *_: object) -> None:
        """Let the signals do what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def agreed(self, accelerator: Accelerator) -> signal.Signals | None:
        """Return the signal that one of the processes got, the same on all of them; every process has to ask."""
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
