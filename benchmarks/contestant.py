"""One training of a race, in a process of its own: it trains when it is told to, and is judged at the end."""

import os
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.entries import Entry, digest, fingerprint
from denoiser.data import load_fashion_mnist
from denoiser.files import atomic_path
from pipelines import make_scheduler
from pipelines.commands.parser import command
from pipelines.training.budget import Budget
from pipelines.training.learner import Learner
from pipelines.training.probe import Probe
from pipelines.training.trainer import start_accelerator


def contend(connection: Connection, entry: Entry, seconds: float, seed: int, folder: Path, compiled: Path) -> None:
    """Train an entry and leave its pipeline.

    Says what it is about to train, as a digest. Then trains whenever it is sent the second to train up to, and answers
    with its progress. At None it is judged, saves the pipeline and answers with the figures.

    Args:
        connection: To the race.
        entry: What to train.
        seconds: For how long in all.
        seed: Of the first weights and of all draws.
        folder: Where the pipeline shall be.
        compiled: Where compiled code may be: a place of its own, for what was compiled earlier would cost it nothing.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compiled)
    with suppress(EOFError):  # the race is gone, and nobody waits for an answer
        command(lambda: _take_turns(connection, entry, seconds, seed, folder))()


def _take_turns(connection: Connection, entry: Entry, seconds: float, seed: int, folder: Path) -> None:
    config, model, scheduler = entry.build(seconds, seed)
    what = digest(fingerprint(entry, config, model, scheduler))
    accelerator = start_accelerator(config)
    images, held_out = (
        load_fashion_mnist(config.data.root, split, model.config.sample_size) for split in ("train", "test")
    )
    learner = Learner(config.training, model, scheduler, accelerator, images)
    averages = {power: learner.new_average(power) for power in entry.ema_powers}
    probe = Probe(held_out.to(accelerator.device), config.sampling, config.training.evaluation_images)
    connection.send(what)
    spent = 0.0
    while (until := connection.recv()) is not None:
        budget = Budget(None, seconds / 60, spent)
        budget.start()
        while budget.seconds < until:
            learner.take_step(budget.progress(learner.step, accelerator))
            for average in averages.values():
                average.step(learner.raw_model.parameters())
        spent = budget.seconds
        connection.send({"seconds": spent, "steps": learner.step, "images": learner.window.images})

    sampler = make_scheduler(config.sampling.scheduler, scheduler.config)
    with accelerator.autocast():  # as in training
        figures = probe.figures(learner.pipeline(sampler), scheduler)
        others = [
            {"ema_power": power, **probe.figures(learner.pipeline(sampler, average), scheduler)}
            for power, average in averages.items()
        ]
    with atomic_path(folder) as temporary:
        learner.pipeline(scheduler).save_pretrained(temporary)
    connection.send({**figures, "precision": accelerator.mixed_precision, "other_averages": others})
