"""The image set of a pipeline: by default that of its run."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml

from denoiser.data import DataConfig, ImageSet, load_sets
from pipelines import PRETRAINED
from pipelines.evaluation.judge import IMAGE_SHAPE

RUN_CONFIG = "config.yaml"  # of a run folder, beside its pipeline
Shape = tuple[int, int, int]


def data_of_run(pipeline: str) -> dict[str, Any]:
    """Return the settings of the set in the config of a pipeline's run, as options; none without such a file."""
    path = Path(pipeline).absolute().parent / RUN_CONFIG
    if pipeline in PRETRAINED or not path.is_file():
        return {}
    try:
        section = yaml.safe_load(path.read_text(encoding="utf-8")).get("data") or {}
        known = [entry.name for entry in fields(DataConfig) if entry.name in section]
        return {f"data.{name}": value for name, value in asdict(DataConfig(**{n: section[n] for n in known})).items()}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({reason}); mend it, or move the pipeline away from it") from error


def load_set(data: DataConfig, shape: Shape | None) -> tuple[ImageSet, ImageSet | None]:
    """Load the set as its training did; FashionMNIST is by default of the pipeline's size, or 16x16.

    Raises:
        ValueError: If the images are not of the shape of the pipeline's, or a source cannot be used.
    """
    if data.source == DataConfig.source and data.size is None:
        data = replace(data, size=(shape or IMAGE_SHAPE)[1:])
    train, test = load_sets(data)
    if shape is not None and train.shape != shape:
        channels, height, width = shape
        raise ValueError(
            f"the set's images are {train.shape} (channels, height, width), and the pipeline makes {shape}; give "
            f"--data.size [{height},{width}] --data.channels {channels}"
        )
    return train, test
