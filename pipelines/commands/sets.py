"""The image set of a pipeline: by default that of its run."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml

from denoiser.data import DataConfig, ImageSet, load_sets
from pipelines import PRETRAINED, DenoisingPipeline
from pipelines.evaluation.judge_networks import IMAGE_SHAPE

RUN_CONFIG = "config.yaml"  # of a run folder, beside its pipeline


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


def load_set(data: DataConfig, pipeline: DenoisingPipeline | None) -> tuple[ImageSet, ImageSet | None]:
    """Load the set of a pipeline as its training did; FashionMNIST is by default of the pipeline's size, or 16x16.

    Raises:
        ValueError: If the images or the classes are not the pipeline's, or a source cannot be used.
    """
    if data.source == DataConfig.source and data.size is None:
        data = replace(data, size=(IMAGE_SHAPE if pipeline is None else pipeline.image_shape)[1:])
    train, test = load_sets(data)
    if pipeline is not None:
        check_set(train, pipeline, data)
    return train, test


def check_set(images: ImageSet, pipeline: DenoisingPipeline, data: DataConfig) -> None:
    """Raise `ValueError` if the images or their classes are not those that a pipeline makes."""
    names = pipeline.classes.names
    if names and tuple(names) != images.class_names:
        told = " and ".join(", ".join(some) or "none" for some in (images.class_names, names))
        raise ValueError(f"the classes of {data.source} and of the pipeline differ ({told}); give its --data.source")
    if images.shape != pipeline.image_shape:
        channels, height, width = pipeline.image_shape
        raise ValueError(
            f"the images of {data.source} are {images.shape} (channels, height, width), and the pipeline's "
            f"{pipeline.image_shape}; give the --data.source that it was trained on, or --data.size [{height},{width}] "
            f"--data.channels {channels}"
        )
