"""Plots of the report. Only this module imports matplotlib."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from denoiser.data import ImageSet
from pipelines import image_grid
from pipelines.evaluation.markdown import TITLES
from pipelines.evaluation.report import Report
from pipelines.evaluation.samples import Samples
from pipelines.evaluation.spaces import PREFIXES

PANEL_SIDE = 128  # pixels of an image in the panel of closest pairs


def plot_report(report: Report, samples: Samples, train: ImageSet) -> dict[str, Image.Image]:
    """Return the plots of a report's sections by name."""
    makers: dict[str, tuple[str, Callable[[], Image.Image]]] = {
        "classes": ("confusion", lambda: confusion_plot(report, train.class_names)),
        "guidance": ("guidance", lambda: guidance_plot(report)),
        "likelihood": ("likelihood", lambda: likelihood_plot(report)),
        "samplers": ("samplers", lambda: samplers_plot(report)),
    }
    pictures = {name: make() for section, (name, make) in makers.items() if section in report}
    for space, section in report.get("memorisation", {}).items():
        pictures[f"memorisation_{space}"] = memorisation_panel(section["closest_pairs"], samples, train)
    return pictures


def memorisation_panel(pairs: Sequence[dict[str, Any]], samples: Samples, train: ImageSet) -> Image.Image:
    """Return a grid of the closest pairs: sample left, training image right, three pairs a row."""
    both = [(samples.sets[0][pair["image"]], train.images[pair["training_image"]]) for pair in pairs]
    scale = max(1, PANEL_SIDE // max(train.images.shape[2:]))
    return image_grid(torch.stack([image for pair in both for image in pair]) / 255, columns=6, scale=scale)


def confusion_plot(report: Report, class_names: Sequence[str]) -> Image.Image:
    """Plot the confusion matrix: the first judge's class (column) of images of each class asked for (row)."""
    shares = np.array(report["classes"]["confusion"], dtype=float)
    shares /= shares.sum(axis=1, keepdims=True).clip(min=1)
    figure, axes = new_figure()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        if shares[row, column] >= 0.005:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set(xlabel="seen by the first judge", ylabel="asked for")
    return picture_of(figure)


def guidance_plot(report: Report) -> Image.Image:
    """Plot agreement and recall against the guidance scale, with the floors of real held-out images, by judge."""
    *rows, floor = report["guidance"]
    figure, panels = figure_by_judge(floor)
    for prefix, axes in panels.items():
        for name, label, colour in (("agreement", "the judge agrees", "C0"), ("recall", "recall", "C1")):
            if prefix + name not in floor:
                continue
            shares = [row[prefix + name] for row in rows]
            axes.plot([row["scale"] for row in rows], shares, "o-", label=label, color=colour)
            axes.axhline(floor[prefix + name], linestyle=":", label=f"{label}: real held-out images", color=colour)
        axes.set(xlabel="guidance scale", ylabel=f"share{TITLES[prefix]}", ylim=(0, 1.02))
        axes.legend()
    return picture_of(figure)


def likelihood_plot(report: Report) -> Image.Image:
    """Plot the bound by timesteps."""
    rows = [row for row in report["likelihood"]["by_timestep"] if row["bits"] > 0]
    figure, axes = new_figure()
    starts, bits, widths = zip(*((row["from"], row["bits"], row["to"] + 1 - row["from"]) for row in rows), strict=True)
    axes.bar(starts, bits, widths, align="edge", edgecolor="white")
    axes.set(xlabel="timestep", ylabel="bits per dimension", yscale="log")
    return picture_of(figure)


def samplers_plot(report: Report) -> Image.Image:
    """Plot each sampler's Fréchet distance against its network calls, by judge."""
    *rows, floor = report["samplers"]
    figure, panels = figure_by_judge(floor)
    for prefix, axes in panels.items():
        distance = f"{prefix}frechet"
        for name in dict.fromkeys(row["sampler"] for row in rows):
            own = [row for row in rows if row["sampler"] == name]
            axes.plot([row["calls"] for row in own], [row[distance] for row in own], "o-", label=name)
        axes.axhline(floor[distance], linestyle=":", color="black", label="real held-out images")
        axes.set_ylim(bottom=0)
        axes.set(xlabel="network calls", ylabel=f"Fréchet distance{TITLES[prefix]}", xscale="log")
        axes.legend()
    return picture_of(figure)


def figure_by_judge(row: Mapping[str, Any]) -> tuple[Figure, dict[str, Any]]:
    """Return an empty figure, and the axes for each judge that a row has a distance of, by its prefix."""
    prefixes = [prefix for prefix in PREFIXES if f"{prefix}frechet" in row]
    figure = Figure(figsize=(6 * len(prefixes), 4.5), dpi=120, layout="constrained")
    return figure, dict(zip(prefixes, figure.subplots(1, len(prefixes), squeeze=False)[0], strict=True))


def new_figure() -> tuple[Figure, Any]:
    """Return an empty figure and its axes."""
    figure = Figure(figsize=(6, 4.5), dpi=120, layout="constrained")
    return figure, figure.add_subplot()


def picture_of(figure: Figure) -> Image.Image:
    """Return a figure as a picture."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
