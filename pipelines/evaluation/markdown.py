"""A report as a Markdown page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.report import Report

LABELS = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "kernel_error": "standard error of the kernel distance",
    "sliced_wasserstein": "sliced Wasserstein distance, squared",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
SPACES = {"judge": "the judge's features", "pixels": "64 principal components of the pixels"}


def render(report: Report, speeds: Mapping[tuple[str, int], float]) -> str:
    """Return a report as Markdown, with `speeds` in images/s by sampler and steps."""
    writers = {
        "distances": distances,
        "classes": _classes,
        "guidance": _guidance,
        "likelihood": _likelihood,
        "memorisation": _memorisation,
    }
    parts = ["# Evaluation\n", _header(report)]
    parts += [write(report) for name, write in writers.items() if name in report]
    if "samplers" in report:
        parts.append(_samplers(report, speeds))
    return "\n".join(parts)


def distances(report: Report) -> str:
    """Return the section on distances."""
    parts = ["## Distances\n"]
    for space, splits in report["distances"].items():
        for split, columns in splits.items():
            rows = [
                [LABELS[figure], *(_with_spread(columns[column][figure]) for column in ("samples", "floor", "ceiling"))]
                for figure in columns["samples"]
            ]
            parts.append(f"Against the {split} split, in {SPACES[space]}:\n")
            parts.append(markdown_table(["", "samples", "floor", "ceiling"], rows))
    parts.append(
        "± is the standard deviation over the sets; the standard error of a kernel distance is over blocks of 1,000 "
        "images, within a set. Floor: the same number of real images of the other split; without ± it is of the "
        "whole test split. Ceiling: Gaussian noise with the mean and the variance of each pixel, "
        "clipped to the grey levels.\n"
    )
    return "\n".join(parts)


def render_validation(figures: dict[str, float]) -> str:
    """Return the table of an evaluation during training."""
    count = int(figures["evaluation_images"])
    losses = {
        "held_out_loss": "held-out loss, test split",
        **{f"held_out_loss_quarter_{quarter}": f"quarter {quarter} of the timesteps" for quarter in range(1, 5)},
    }
    rows = [[name, number(figures[key]), ""] for key, name in losses.items() if key in figures]
    if "frechet" in figures:
        distance, floor = number(figures["frechet"]), number(figures["frechet_floor"])
        rows.insert(0, [f"Fréchet distance of {count:,} images, judge's features, train split", distance, floor])
    return markdown_table(["at the end of training", "samples", "floor: real test images"], rows)


def _header(report: Report) -> str:
    facts = dict(report.get("subject", {}))
    if "images" in report:
        facts |= {"images": f"{report['images']:,}", "sets of them (seeds)": report["sets"]}
    facts["judge"] = f"{report['judge']['test_accuracy']:.1%} on the test split, {report['judge']['sha256'][:12]}"
    return markdown_table(["", ""], [[name, value] for name, value in facts.items()])


def _classes(report: Report) -> str:
    section = report["classes"]
    rows = [
        [
            name,
            *(_with_spread(row[figure]) for figure in ("frechet", "floor", "agreement")),
            number(section["agreement_floor"][index]),
        ]
        for index, (name, row) in enumerate(section["by_class"].items())
    ]
    columns = ["class", "Fréchet distance", "floor", "judge agrees", "floor"]
    return (
        "## By class\n\nDistance to the class's training images in the judge's features; the floors are the class's "
        f"test images.\n\n{markdown_table(columns, rows)}\nOver all classes the judge agrees with "
        f"{_with_spread(section['agreement'])} of the images.\n\n![confusion](report/confusion.png)\n"
    )


def _guidance(report: Report) -> str:
    rows = [
        [
            "real test images" if row.get("floor") else row["scale"],
            *(number(row[figure]) for figure in ("agreement", "recall", "frechet")),
        ]
        for row in report["guidance"]
    ]
    table = markdown_table(["guidance scale", "judge agrees", "recall", "Fréchet distance"], rows)
    count = report["guidance"][-1]["images"]
    return f"## Guidance\n\n{count:,} images a row, train split.\n\n{table}\n![guidance](report/guidance.png)\n"


def _likelihood(report: Report) -> str:
    section = report["likelihood"]
    parts = [[name, number(section[name])] for name in ("prior", "denoising", "decoder")]
    rows = [[f"{row['from']} to {row['to']}", number(row["bits"])] for row in section["by_timestep"] if row["bits"] > 0]
    bound, variance = f"{section['bits_per_dimension']:.3f} ± {section['standard_error']:.3f}", section["variance_type"]
    given = "given their labels, " if section["given_labels"] else ""
    return (
        f"## Likelihood\n\nThe variational bound of {section['images']:,} test images (Ho et al. 2020, eq. 5 and 13), "
        f"{given}the reverse steps' variance `{variance}`: **{bound} bits per dimension** (standard error over "
        f"images).\n\n{markdown_table(['part', 'bits per dimension'], parts)}\n"
        f"{markdown_table(['timesteps', 'bits per dimension'], rows)}\n![likelihood](report/likelihood.png)\n"
    )


def _memorisation(report: Report) -> str:
    section = report["memorisation"]
    rows = [
        [name.replace("_", " "), number(value), number(section["floor"][name])]
        for name, value in section["samples"].items()
    ]
    table = markdown_table(["", "samples", "real test images"], rows)
    return (
        "## Memorisation\n\nThe two nearest training images in the judge's features; the ratio is the first distance "
        f"over the second, near 0 for a copy.\n\n{table}\n"
        "The twelve closest pairs, sample left and training image right, are in `report/memorisation.png`.\n\n"
        "![pairs](report/memorisation.png)\n"
    )


def _samplers(report: Report, speeds: Mapping[tuple[str, int], float]) -> str:
    rows = []
    for row in report["samplers"]:
        figures = [number(row["frechet"]), number(row["recall"])]
        if row.get("floor"):
            rows.append(["real test images", "", "", *figures, ""])
        else:
            speed = speeds[row["sampler"], row["steps"]]
            rows.append([row["sampler"], row["steps"], row["calls"], *figures, number(speed)])
    columns = ["sampler", "steps", "network calls", "Fréchet distance", "recall", "images/s"]
    count = report["samplers"][-1]["images"]
    table = markdown_table(columns, rows)
    return f"## Samplers\n\n{count:,} images a row, train split.\n\n{table}\n![samplers](report/samplers.png)\n"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _with_spread(figure: dict[str, float | None]) -> str:
    mean, spread = figure["mean"], figure["spread"]
    assert mean is not None
    return number(mean) if spread is None else f"{number(mean)} ± {number(spread)}"


def number(value: float) -> str:
    """Return four significant digits, never with an exponent."""
    return np.format_float_positional(value, precision=4, fractional=False, trim="-")
