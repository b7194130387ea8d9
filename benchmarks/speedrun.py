"""The speedrun: seconds of training to a Fréchet distance of 0.25 (docs/benchmarks.md has the rules)."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.entries import Entry
from benchmarks.machine import FORWARDS_IN_A_STEP
from benchmarks.race import PIPELINE, Training, race
from benchmarks.tables import DISTANCES, train_rows
from denoiser.data import DataConfig
from denoiser.files import atomic_path
from pipelines import check_sampling, make_scheduler
from pipelines.commands.parsed_run import ParsedRun
from pipelines.evaluation.markdown import markdown_table, number
from pipelines.evaluation.samples import calls
from pipelines.training import RunConfig

DISTANCE, IMAGES, MOST_CALLS = 0.25, 2048, 20


def read_runner(config: str, data_root: str) -> Entry:
    """Return the entry of a config, which is a YAML file or the name of one.

    Raises:
        ValueError: If the config breaks the rules of the speedrun, or its samples cannot be made.
    """
    arguments = ("--config", config, "--data.root", data_root)
    run = ParsedRun(arguments).config
    _check_rules(run)
    assert run.training.max_minutes is not None
    seconds = 60 * run.training.max_minutes
    runner = Entry("speedrun", arguments, (seconds,))
    _, model, noise_schedule = runner.build(seconds, seed=0)
    sampler = make_scheduler(run.sampling.scheduler, noise_schedule.config)
    check_sampling(run.sampling, model, sampler, run.training.own_autoguidance)
    return runner


def _check_rules(run: RunConfig) -> None:
    for name, value, wanted in (
        ("data.source", run.data.source, DataConfig.source),
        ("init_from", run.init_from, None),
        ("training.max_steps", run.training.max_steps, None),
        ("training.evaluation_images", run.training.evaluation_images, IMAGES),
    ):
        if value != wanted:
            raise ValueError(f"{name} is {value}, and a speedrun has {wanted or 'none'}; leave it out")
    if (network_calls := calls(run.sampling, run.training.own_autoguidance)) > MOST_CALLS:
        raise ValueError(
            f"an image takes {network_calls} network calls, those of a guide included, and up to {MOST_CALLS} in a "
            "speedrun; give training.guide_at null, or fewer sampling.steps"
        )


def run_seeds(
    runner: Entry, seeds: int, folder: Path, on_turn: Callable[[float], object] = lambda seconds: None
) -> list[dict[str, Any]]:
    """Train once for each seed, always anew; returns a row for each.

    Args:
        runner: What is trained, for the first of its seconds.
        seeds: Number of runs, with seeds from 0.
        folder: Gets the pipeline of each seed.
        on_turn: Called with the seconds of each turn of training.
    """
    rows = []
    for seed in range(seeds):
        with TemporaryDirectory() as scratch:
            training = Training.of(runner, runner.seconds[0], seed, Path(scratch))
            race([training], on_turn)
            rows.append(_row(training))
            with atomic_path(folder / f"seed_{seed}") as temporary:
                shutil.copytree(training.folder / PIPELINE, temporary)
    return rows


def _row(training: Training) -> dict[str, Any]:
    """Return the figures of a training, with the distances by each judge and all that they depend on."""
    result = training.result
    assert result is not None
    operations = FORWARDS_IN_A_STEP * training.facts["operations"] * result["images"]
    return {
        **train_rows([training])[0],
        **{name: figure for name, figure in result.items() if "frechet" in name},
        "seconds": result["seconds"],
        "training_operations": operations,
        "reached": result["frechet"] <= DISTANCE,
        "facts": result["facts"],
    }


def speedrun_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return whether the seeds reached the distance, and a table of them."""
    reached, mean = sum(row["reached"] for row in rows), number(fmean(row["frechet"] for row in rows))
    lines = [
        [
            row["seed"],
            f"{row['seconds']:.1f}",
            f"{row['steps']:,}",
            f"{row['images_per_second']:,.0f}",
            f"{row['training_operations'] / 1e12:,.1f}",
            *(number(row[name]) for name in DISTANCES),
            "reached" if row["reached"] else "missed",
        ]
        for row in rows
    ]
    columns = ["seed", "seconds", "steps", "images/s", "TFLOP", *DISTANCES.values(), ""]
    floors = "; ".join(f"{words} {number(rows[0][f'{name}_floor'])}" for name, words in DISTANCES.items())
    return (
        f"{'reached' if reached == len(rows) else 'missed'}: {reached} of {len(rows)} seeds are at a Fréchet distance "
        f"of {DISTANCE} or less after {max(row['seconds'] for row in rows):.1f} s of training; the mean is {mean}\n\n"
        f"{markdown_table(columns, lines)}\n"
        f"{IMAGES:,} images a row. As many test images: {floors}.\n"
    )
