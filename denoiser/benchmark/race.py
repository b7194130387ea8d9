"""Trainings side by side: each entry in a process of its own, in turns of a few seconds, one at a time.

So whatever else the machine does meanwhile falls on all of them alike. Only its own turns count for an entry.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any

from denoiser.benchmark.contestant import contend
from denoiser.benchmark.entries import Entry, digest, fingerprint
from denoiser.benchmark.machine import matmul_speed, operations_per_image
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
        facts = {
            **fingerprint(config, model, scheduler),
            "network": type(model).__name__,
            "parameters": model.num_parameters(),
            "operations": operations_per_image(model),
            "classes": model.config.get("num_class_embeds"),
        }
        return cls(entry, seconds, seed, cache / digest(facts), facts)

    @property
    def result(self) -> dict[str, Any] | None:
        """What it came to, or None if it was not made yet."""
        path = self.folder / RESULT
        return json.loads(path.read_text()) if path.is_file() else None


def race(trainings: Sequence[Training], on_turn: Callable[[float], object] = lambda seconds: None) -> None:
    """Make the trainings that were not made yet, those of equal length side by side.

    Args:
        trainings: What to make.
        on_turn: Called with the seconds of training after each turn.

    Raises:
        ValueError: If an entry cannot be trained; its process says why.
    """
    for seconds in sorted({training.seconds for training in trainings}):
        todo = {training.folder: training for training in trainings if training.seconds == seconds}
        waiting = [training for training in todo.values() if training.result is None]
        if waiting:
            _race_of(waiting, on_turn)


def _race_of(trainings: Sequence[Training], on_turn: Callable[[float], object]) -> None:
    with _contestants(trainings) as connections:
        for connection in connections.values():
            _receive(connection)  # ready
        progress: dict[Path, dict[str, float]] = {}
        peaks = []
        while any(progress.get(one.folder, {}).get("seconds", 0.0) < one.seconds for one in trainings):
            peaks.append(matmul_speed())
            for training in trainings:
                before = progress.get(training.folder, {}).get("seconds", 0.0)
                if before < training.seconds:
                    connection = connections[training.folder]
                    connection.send(min(before + TURN, training.seconds))
                    progress[training.folder] = _receive(connection)
                    on_turn(progress[training.folder]["seconds"] - before)
        for training in trainings:
            connections[training.folder].send(None)
            figures = _receive(connections[training.folder])
            result = {**progress[training.folder], **figures, "peak": fmean(peaks), "facts": training.facts}
            result |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "beside": len(trainings) - 1}
            with atomic_path(training.folder / RESULT) as temporary:
                temporary.write_text(json.dumps(result, indent=2) + "\n")


@contextmanager
def _contestants(trainings: Sequence[Training]) -> Iterator[dict[Path, Connection]]:
    context = multiprocessing.get_context("spawn")  # a fork would share what the threads of this process hold
    processes, connections = [], {}
    try:
        for training in trainings:
            connections[training.folder], theirs = context.Pipe()
            arguments = (theirs, training.entry, training.seconds, training.seed, training.folder / PIPELINE)
            processes.append(context.Process(target=contend, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
        yield connections
    except BaseException:  # an interrupt too leaves none behind
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError as error:
        raise ValueError("an entry could not be trained; its own message stands above") from error
