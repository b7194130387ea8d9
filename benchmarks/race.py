"""Trainings side by side: each entry in a process of its own, in turns of a few seconds, one at a time.

So whatever else the machine does meanwhile falls on all of them alike. Only its own turns count for an entry.
"""

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.contestant import contend
from benchmarks.entries import Entry, digest, fingerprint
from benchmarks.machine import matmul_speed, operations_per_image
from denoiser.files import atomic_path

TURN = 5.0  # seconds
RESULT, PIPELINE = "result.json", "pipeline"


@dataclass(frozen=True)
class Training:
    """One training of an entry.

    Attributes:
        entry: What is trained.
        seconds: For how long.
        seed: Of the first weights and of all draws.
        folder: Where its result and its pipeline are, or will be; the name is a hash of all that they depend on.
        facts: What that is, and the network's "parameters" and "operations" in a forward pass of an image.
    """

    entry: Entry
    seconds: float
    seed: int
    folder: Path
    facts: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, entry: Entry, seconds: float, seed: int, cache: Path) -> "Training":
        """Describe a training whose result is kept in `cache`."""
        config, model, scheduler = entry.build(seconds, seed)
        facts = fingerprint(entry, config, model, scheduler)
        counts = {"parameters": model.num_parameters(), "operations": operations_per_image(model)}
        return cls(entry, seconds, seed, cache / digest(facts), {**facts, **counts})

    @property
    def result(self) -> dict[str, Any] | None:
        """What it came to, or None if it was not made yet."""
        path = self.folder / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def race(trainings: Sequence[Training], on_turn: Callable[[float], object] = lambda seconds: None) -> None:
    """Make the trainings that were not made yet, those of equal length and seed side by side.

    Args:
        trainings: What to make.
        on_turn: Called with the seconds of training after each turn.

    Raises:
        ValueError: If an entry cannot be trained; its process says why.
    """
    for group in sorted({(training.seconds, training.seed) for training in trainings}):
        todo = {training.folder: training for training in trainings if (training.seconds, training.seed) == group}
        waiting = [training for training in todo.values() if training.result is None]
        if waiting:
            _race_of(waiting, on_turn)


def _race_of(trainings: Sequence[Training], on_turn: Callable[[float], object]) -> None:
    started = _now()
    with _contestants(trainings) as connections:
        for training in trainings:
            if _receive(training, connections) != training.folder.name:
                raise ValueError("the code or a config was changed while the race was set up; start it again")
        progress: dict[Path, dict[str, float]] = {training.folder: {"seconds": 0.0} for training in trainings}
        peaks = []
        while any(progress[training.folder]["seconds"] < training.seconds for training in trainings):
            peaks.append(matmul_speed())
            for training in trainings:
                before = progress[training.folder]["seconds"]
                if before < training.seconds:
                    _send(training, connections, min(before + TURN, training.seconds))
                    progress[training.folder] = _receive(training, connections)
                    on_turn(progress[training.folder]["seconds"] - before)
        for training in trainings:
            _send(training, connections, None)
            figures = _receive(training, connections)
            result = {**progress[training.folder], **figures, "peak": fmean(peaks), "facts": training.facts}
            result |= {"race": started, "date": _now()}
            with atomic_path(training.folder / RESULT) as temporary:
                temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _contestants(trainings: Sequence[Training]) -> Iterator[dict[Path, Connection]]:
    context = multiprocessing.get_context("spawn")  # a fork would share what the threads of this process hold
    processes, connections = [], {}
    scratch = TemporaryDirectory()
    try:
        for training in trainings:
            connections[training.folder], theirs = context.Pipe()
            folder, compiled = training.folder / PIPELINE, Path(scratch.name, training.folder.name)
            arguments = (theirs, training.entry, training.seconds, training.seed, folder, compiled)
            process = context.Process(target=contend, args=arguments, daemon=True)
            with _interrupts_ignored():
                process.start()
            processes.append(process)
            theirs.close()
        yield connections
    except BaseException:  # an interrupt too leaves none behind
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()
        scratch.cleanup()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let processes that are started meanwhile ignore interrupts, which are for the race to handle."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _send(training: Training, connections: dict[Path, Connection], message: float | None) -> None:
    with _named(training):
        connections[training.folder].send(message)


def _receive(training: Training, connections: dict[Path, Connection]) -> Any:
    with _named(training):
        return connections[training.folder].recv()


@contextmanager
def _named(training: Training) -> Iterator[None]:
    """Say which training it was whose process has ended."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise ValueError(
            f"'{training.entry.name}' could not be trained for {training.seconds:g} s: its process ended; "
            "what it said stands above"
        ) from error
