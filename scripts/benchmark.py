"""Measure this project beside other U-Nets, in turns on the same machine: python scripts/benchmark.py train."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from denoiser.benchmark.entries import Field, read_field
from denoiser.benchmark.machine import processor
from denoiser.benchmark.race import Training, race
from denoiser.benchmark.speed import feeding_speeds, sampling_speeds
from denoiser.benchmark.stock import stock_comparison
from denoiser.benchmark.tables import reach_table, speed_table, stock_table, train_plot, train_rows, train_table
from denoiser.checks import check_positive
from denoiser.cli import Parser, run
from denoiser.device import must_use_cpu, prepare_cpu
from denoiser.files import atomic_path, check_writable

NETWORKS, QUICK = "configs/benchmark/networks.yaml", "configs/benchmark/quick.yaml"
WHAT = (
    "train: quality after some seconds of training; sample: speed of drawing; stock (after train): speed of drawing at "
    "the quality of the baseline in the stock DDPMPipeline; data: speed of the input path"
)
BAR = "training {percentage:3.0f}%|{bar:20}| {elapsed}, {remaining} left, and the judging"
FEEDING_BATCH_SIZE, FEEDING_BATCHES = 128, 50


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=["train", "sample", "stock", "data"], help=WHAT)
    parser.add_argument("--entries", type=str, default=NETWORKS, help="file of what is compared")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}: two networks, in under 12 minutes")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each entry and length")
    parser.add_argument("--steps", type=list[int], default=[20], help="steps of the sampler, for its speed: [1,4,20]")
    parser.add_argument("--batch_sizes", type=list[int], default=[64, 512], help="images drawn at once, likewise")
    parser.add_argument("--compile", action="store_true", help="measure the drawing of each network compiled too")
    parser.add_argument("--rounds", type=int, default=3, help="turns that count, for a speed")
    parser.add_argument("--images", type=int, default=512, help="images that a distance beside the stock is of")
    parser.add_argument("--output_dir", type=str, default="runs/benchmark", help="folder of tables and trainings")
    parser.add_argument("--data_root", type=str, default="data", help="folder of FashionMNIST")
    return parser


def all_trainings(field: Field, seeds: int, folder: Path) -> list[Training]:
    """Return every training that a file asks for."""
    return [
        Training.of(entry, seconds, seed, folder / "trainings")
        for entry in field.entries.values()
        for seconds in entry.seconds
        for seed in range(seeds)
    ]


def stock(field: Field, num_images: int, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Compare the finished trainings with the baseline's longest in the stock pipeline."""
    finished = [training for training in all_trainings(field, 1, folder) if training.result is not None]
    own = [training for training in finished if training.entry.name == field.baseline]
    if not own:
        raise ValueError(
            f"no training of '{field.baseline}' is in {folder}; make them first, with the same options and train"
        )
    baseline = max(own, key=lambda training: training.seconds)
    rows = stock_comparison(baseline, [training for training in finished if training not in own], num_images)
    return rows, stock_table(rows)


def train(field: Field, seeds: int, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Train what was not trained yet, and return the figures and the tables."""
    trainings = all_trainings(field, seeds, folder)
    todo = {training.folder: training.seconds for training in trainings if training.result is None}
    length = sum(todo.values())
    with tqdm(total=length, bar_format=BAR, mininterval=15, disable=not todo) as bar:
        race(trainings, lambda seconds: bar.update(min(seconds, length - bar.n)))
    rows = train_rows(trainings)
    with atomic_path(folder / "train.png") as temporary:
        train_plot(rows).save(temporary)
    return rows, f"{train_table(rows, field.baseline)}\n{reach_table(rows, field.baseline)}"


def main() -> None:
    """Measure, write the tables, and print them."""
    parser = build_parser()
    options = parser.parse_args(sys.argv[1:])
    check_positive(seeds=options.seeds, rounds=options.rounds, images=options.images)
    for steps in options.steps:
        check_positive(steps=steps)
    for batch_size in options.batch_sizes:
        check_positive(batch_size=batch_size)
    folder = Path(options.output_dir)
    check_writable(folder / "train.json")
    prepare_cpu(PartialState(cpu=must_use_cpu()))
    field = read_field(Path(QUICK if options.quick else options.entries), options.data_root)
    if options.what == "train":
        rows, page = train(field, options.seeds, folder)
    elif options.what == "stock":
        rows, page = stock(field, options.images, folder)
    elif options.what == "sample":
        entries = list(field.entries.values())
        rows = sampling_speeds(entries, options.batch_sizes, options.steps, options.rounds, options.compile)
        page = speed_table(rows, field.baseline)
    else:
        rows = feeding_speeds(options.data_root, FEEDING_BATCH_SIZE, FEEDING_BATCHES, options.rounds)
        page = speed_table(rows, "torchvision, DataLoader, 0 workers")
    write(folder, options.what, rows, page)


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], page: str) -> None:
    """Write the figures and the tables, and print the tables."""
    figures = {"processor": processor(), "rows": rows}
    for suffix, text in (("json", json.dumps(figures, indent=2) + "\n"), ("md", page)):
        with atomic_path(folder / f"{name}.{suffix}") as temporary:
            temporary.write_text(text)
    print(f"{page}\n{processor()}\nwritten to {folder / name}.md and .json")


if __name__ == "__main__":
    run(main)
