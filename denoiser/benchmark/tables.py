"""What the benchmarks say: tables, and a plot of the distance against the seconds of training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from denoiser.benchmark.race import Training
from denoiser.evaluation.markdown import markdown_table, number
from denoiser.evaluation.plots import new_figure, picture_of

FORWARDS_IN_A_STEP = 3  # the backward pass computes two products for each one of the forward pass


def train_rows(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """Return the figures of finished trainings, one row each."""
    rows = []
    for training in trainings:
        result, facts = training.result, training.facts
        assert result is not None
        speed = result["images"] / result["seconds"]
        rows.append(
            {
                "name": training.entry.name,
                "arguments": " ".join(training.entry.arguments),
                "seed": training.seed,
                "parameters": facts["parameters"],
                "operations_per_image": facts["operations"],
                "precision": result["precision"],
                "seconds": training.seconds,
                "steps": result["steps"],
                "images_per_second": speed,
                "bf16_matmul_peak": result["peak"],
                "share_of_peak": FORWARDS_IN_A_STEP * facts["operations"] * speed / result["peak"],
                **{name: result[name] for name in ("held_out_loss", "frechet", "frechet_floor", "evaluation_images")},
                "date": result["date"],
            }
        )
    return rows


def train_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return the trainings as a table, in order of their length; ratios are to the baseline's of equal length."""
    seeds = len({row["seed"] for row in rows}) > 1
    lines = []
    for row in sorted(rows, key=lambda row: row["seconds"]):
        other = _find(rows, baseline, row["seconds"], row["seed"])
        ratio = number(row["frechet"] / other["frechet"]) if other else ""
        speed_ratio = number(row["images_per_second"] / other["images_per_second"]) if other else ""
        lines.append(
            [
                row["name"] + (f", seed {row['seed']}" if seeds else ""),
                f"{row['parameters']:,}",
                number(row["operations_per_image"] / 1e6),
                row["precision"].replace("no", "fp32"),
                f"{row['seconds']:g}",
                f"{row['steps']:,}",
                f"{row['images_per_second']:.0f}",
                speed_ratio,
                f"{row['share_of_peak']:.0%}",
                number(row["held_out_loss"]),
                number(row["frechet"]),
                ratio,
            ]
        )
    columns = [
        *("network", "parameters", "MFLOP an image", "precision", "seconds", "steps", "images/s", "ratio"),
        *("share of bf16 peak", "held-out loss", "Fréchet distance", "ratio"),
    ]
    images, floor = rows[0]["evaluation_images"], number(rows[0]["frechet_floor"])
    return (
        f"{markdown_table(columns, lines)}\nFréchet distance of {images:,} images to the train split in the judge's "
        f"features; the floor, as many test images, is {floor}. Ratios are to {baseline}.\n"
    )


def reach_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return how long each network takes to the distance that the baseline has after its longest training."""
    own = [row for row in rows if row["name"] == baseline]
    if not own:
        return ""
    longest = max(own, key=lambda row: row["seconds"])
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        seconds = seconds_to(longest["frechet"], [row for row in rows if row["name"] == name])
        share = "" if seconds is None else number(seconds / longest["seconds"])
        lines.append([name, "not reached" if seconds is None else f"{seconds:.0f}", share])
    table = markdown_table(["network", "seconds", "ratio"], lines)
    return (
        f"Seconds to a Fréchet distance of {number(longest['frechet'])}, {baseline}'s after {longest['seconds']:g} s "
        f"(between trainings of other lengths, along the line in the plot):\n\n{table}"
    )


def seconds_to(distance: float, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the length of a training that reaches the distance, by a power law between the two trainings around it.

    None if no training reaches it; the shortest one's length if that does already.
    """
    ordered = sorted(rows, key=lambda row: row["seconds"])
    previous: Mapping[str, Any] | None = None
    for row in ordered:
        if row["frechet"] <= distance:
            if previous is None:
                return row["seconds"]
            share = math.log(previous["frechet"] / distance) / math.log(previous["frechet"] / row["frechet"])
            return previous["seconds"] * (row["seconds"] / previous["seconds"]) ** share
        previous = row
    return None


def train_plot(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw the distance against the seconds of training, both logarithmic."""
    figure, axes = new_figure()
    for name in dict.fromkeys(row["name"] for row in rows):
        own = sorted((row["seconds"], row["frechet"]) for row in rows if row["name"] == name)
        axes.plot(*zip(*own, strict=True), "o-", label=name)
    axes.axhline(rows[0]["frechet_floor"], linestyle=":", color="black", label="real test images")
    axes.set(xlabel="seconds of training", ylabel="Fréchet distance", xscale="log", yscale="log")
    axes.legend(fontsize=8)
    return picture_of(figure)


def speed_table(rows: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """Return speeds as a table; ratios are to the baseline's of the same batch size."""
    others = {row.get("batch_size"): row["images_per_second"] for row in rows if row["name"] == baseline}
    lines = []
    for row in rows:
        speeds = (row[name] for name in ("images_per_second", "slowest_round", "fastest_round"))
        ratio = number(row["images_per_second"] / others[row.get("batch_size")])
        share = [f"{row['share_of_peak']:.0%}"] if "share_of_peak" in row else []
        lines.append([row["name"], row.get("batch_size", ""), *(number(speed) for speed in speeds), ratio, *share])
    columns = ["", "batch", "images/s (median)", "slowest", "fastest", "ratio"]
    share_column = ["share of bf16 peak"] if "share_of_peak" in rows[0] else []
    return markdown_table([*columns, *share_column], lines)


def stock_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the speeds at equal distance as a table; the first row is what the others have to equal."""
    target = rows[0]
    lines = [
        [
            row["name"] + (" in the stock DDPMPipeline" if row is target else ""),
            f"{row['trained_seconds']:g}",
            row["steps"],
            number(row["frechet"]),
            number(row["images_per_second"]),
            number(row["images_per_second"] / target["images_per_second"]),
        ]
        for row in rows
    ]
    columns = ["network", "seconds of training", "steps", "Fréchet distance", "images/s", "ratio"]
    return f"{markdown_table(columns, lines)}\n{target['images']:,} images a row.\n"


def _find(rows: Sequence[Mapping[str, Any]], name: str, seconds: float, seed: int) -> Mapping[str, Any] | None:
    return next((row for row in rows if (row["name"], row["seconds"], row["seed"]) == (name, seconds, seed)), None)
