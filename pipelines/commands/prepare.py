"""Prepare an image set ahead of a training: python scripts/prepare_data.py --data.source my_images --data.size 32."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import tqdm
from PIL import Image

from denoiser.data import DataConfig, ImageSet, open_set, prepare
from denoiser.data.form import read_facts
from denoiser.data.image_set import evenly
from denoiser.data.parts import NAMED
from denoiser.data.preparation import OnProgress
from denoiser.processes import optional
from pipelines.commands.parser import Parser, command
from pipelines.images import image_grid, named_grid, save_image

CONTACT_SHEET = "contact_sheet.png"
COLUMNS, ROWS = 10, 10
CELL = 64  # pixels of an image in the contact sheet, or more


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_class_arguments(DataConfig, "data")
    return parser


@contextmanager
def preparation_bar() -> Iterator[OnProgress]:
    """Yield what shows the progress of a preparation, if there is one."""
    bars: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bars:
            # of the process that prepares, which need not be the main one
            shown = {"total": total, "initial": done, "unit": "image", "desc": "preparing", "leave": False}
            bars.append(tqdm(main_process_only=False, **shown))
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def contact_sheet(images: ImageSet) -> Image.Image:
    """Return a picture of some images: ten of each class in a row, or a hundred without classes."""
    scale = math.ceil(CELL / max(images.images.shape[2:]))
    if images.labels is None:
        return image_grid(images.images[evenly(len(images), ROWS * COLUMNS)] / 255, COLUMNS, scale)
    rows, names = [], []
    for label, name in enumerate(images.class_names):
        of_class = (images.labels == label).nonzero().flatten()
        if len(of_class):
            shown = images.images[of_class[evenly(len(of_class), COLUMNS)]] / 255
            empty = torch.full((COLUMNS - len(shown), *shown.shape[1:]), 0.5)
            rows.append(torch.cat([shown, empty]))
            names += [name] * COLUMNS
    return named_grid(torch.cat(rows), names, COLUMNS, scale)


def describe(folder: Path, train: ImageSet, held_out: ImageSet | None) -> str:
    """Return what is in a prepared set, line by line."""
    facts = read_facts(folder)
    channels, height, width = facts["shape"]
    sizes = ", ".join(f"{size} ({count:,})" for size, count in facts["sizes_before"].items())
    told = {
        "folder": folder,
        "images": f"{len(train):,} to train on, {_held_out(**facts['held_out'])}",
        "shape": f"{width}x{height}, {channels} channel{'s' * (channels > 1)}",
        "original sizes": sizes,
        "mean": _numbers(facts["mean"]),
        "deviation": _numbers(facts["standard_deviation"]),
    }
    if facts["left_out"]:
        told["left out"] = f"{facts['left_out']:,}, which equal a held-out image"
    unreadable = facts["unreadable"]
    if unreadable:
        told["unreadable"] = f"{len(unreadable):,}, skipped"
    lines = [f"{f'{name}:':16}{text}" for name, text in told.items()]
    lines += [f"{'':16}{name} {reason}" for name, reason in unreadable[:NAMED]]
    if train.labels is not None:
        counts = [_counts(train), _counts(held_out) if held_out else [0] * len(train.class_names)]
        length = max(map(len, ("class", *train.class_names)))
        lines += ["", f"{'class':{length}}  to train on  held out"]
        rows = zip(train.class_names, *counts, strict=True)
        lines += [f"{name:{length}}  {trained:11,}  {held:8,}" for name, trained, held in rows]
    return "\n".join(lines)


def _held_out(images: int, rule: str | float) -> str:
    if not images:
        return "none held out"
    return f"{images:,} held out ({rule if isinstance(rule, str) else f'{rule:.4g} of all, by hash'})"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _counts(images: ImageSet) -> list[int]:
    assert images.labels is not None
    counts: list[int] = images.labels.bincount(minlength=len(images.class_names)).tolist()
    return counts


@command
def main() -> None:
    """Prepare, and print what is in the set."""
    parser = build_parser()
    config = parser.instantiate(parser.parse_args(sys.argv[1:])).data
    with preparation_bar() as on_progress:
        folder = prepare(config, on_progress=on_progress)
    train, held_out = open_set(folder, config.in_memory, config.labels)
    print(describe(folder, train, held_out))
    with optional("writing the contact sheet"):  # of a set that may lie where nothing can be written
        save_image(contact_sheet(train), folder / CONTACT_SHEET)
        print(f"\ncontact sheet: {folder / CONTACT_SHEET}")


if __name__ == "__main__":
    main()
