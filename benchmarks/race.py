"""Races: trainings in processes of their own, in turns of a few seconds, one at a time.

Other load on the machine then affects all of them alike. An entry's time is that of its own turns.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.entries import Entry, digest, fingerprint
from benchmarks.machine import matmul_speed, operations_per_image
from denoiser.data import load_fashion_mnist
from denoiser.files import atomic_path
from pipelines import make_scheduler
from pipelines.commands.parser import command
from pipelines.training import Learner, start_accelerator
from pipelines.training.budget import Budget
from pipelines.training.metrics import Validation

TURN = 5.0  # seconds
RESULT, PIPELINE = "result.json", "pipeline"


@dataclass(frozen=True)
class Training:
    """One training of an entry."""

    entry: Entry
    seconds: float
    seed: int
    folder: Path
    facts: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, entry: Entry, seconds: float, seed: int, cache: Path) -> "Training":
        """Describe a training whose result is kept in `cache`."""
        config, model, noise_schedule = entry.build(seconds, seed)
        facts = fingerprint(config, model, noise_schedule)
        counts = {"parameters": model.num_parameters(), "operations": operations_per_image(model)}
        return cls(entry, seconds, seed, cache / digest(facts), {**facts, **counts})

    @property
    def result(self) -> dict[str, Any] | None:
        """Its result, or None before the training."""
        path = self.folder / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def race(trainings: Sequence[Training], on_turn: Callable[[float], object] = lambda seconds: None) -> None:
    """Make the trainings without a result, those of equal length and seed in one race."""
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
    """Let processes started in the block ignore interrupts, which the race handles."""
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
    """Name the training whose process has ended."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise ValueError(
            f"'{training.entry.name}' could not be trained for {training.seconds:g} s: its process ended; "
            "what it said stands above"
        ) from error


def contend(connection: Connection, entry: Entry, seconds: float, seed: int, folder: Path, compiled: Path) -> None:
    """Train an entry in turns, and save its pipeline.

    The process sends the digest of its training. Then it receives the second up to which to train, and
    answers with its progress. At None it evaluates, saves the pipeline and answers with the metrics.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compiled)
    with suppress(EOFError):  # the race has ended
        command(lambda: _take_turns(connection, entry, seconds, seed, folder))()


def _take_turns(connection: Connection, entry: Entry, seconds: float, seed: int, folder: Path) -> None:
    config, model, noise_schedule = entry.build(seconds, seed)
    what = digest(fingerprint(config, model, noise_schedule))
    accelerator = start_accelerator(config)
    images, held_out = (
        load_fashion_mnist(config.data.root, split, model.config.sample_size) for split in ("train", "test")
    )
    learner = Learner(config.training, model, noise_schedule, accelerator, images)
    count, num_classes = config.training.evaluation_images, learner.num_classes
    validation = Validation(held_out, config.sampling, count, images, num_classes)
    connection.send(what)
    spent = 0.0
    while (until := connection.recv()) is not None:
        budget = Budget(None, seconds / 60, spent)
        budget.start()
        while budget.seconds < until:
            learner.take_step(budget.progress(learner.step, accelerator))
        spent = budget.seconds
        connection.send({"seconds": spent, "steps": learner.step, "images": learner.window.images})

    figures = learner.validate(validation, make_scheduler(config.sampling.scheduler, noise_schedule.config))
    with atomic_path(folder) as temporary:
        learner.pipeline().save_pretrained(temporary)
    connection.send({**figures, "precision": accelerator.mixed_precision})
