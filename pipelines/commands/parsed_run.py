"""A training's command line and config file, and what they build for an image set."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, ModelMixin
from jsonargparse import Namespace

from denoiser.checks import check_seed, pair
from pipelines import DenoisingPipeline, find_pipeline
from pipelines.commands.parser import Parser
from pipelines.schedulers import distilled_calls
from pipelines.training import RunConfig
from pipelines.training.initial import start_from

DEFAULT = "fashion_mnist"  # the config without --config


class ParsedRun:
    """A training's command line and config file. Errors end the program with one line and exit status 2.

    Attributes:
        config: Settings of the run.
    """

    def __init__(self, arguments: Sequence[str], description: str | None = None) -> None:
        self._parser = Parser(description=description)
        self._parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
        self._parser.add_class_arguments(RunConfig)
        self._parser.add_subclass_arguments(ModelMixin, "model", required=True, help="denoiser.UNet or …BasicUNet")
        self._parser.add_class_arguments(DDPMScheduler, "scheduler")
        arguments = _with_default_config(arguments)
        self._options = self._parser.parse_args(arguments)
        given = self._parser.parse_args(arguments, defaults=False)
        self._given: Mapping[str, Any] = vars(given.model.get("init_args", Namespace()))
        self._given_schedule: Mapping[str, Any] = vars(given.get("scheduler") or Namespace())
        sections = [field.name for field in fields(RunConfig) if field.default is not None]
        if empty := [name for name in sections if self._options[name] is None]:
            raise ValueError(f"the config has nothing under '{empty[0]}'; leave a section out if it is empty")
        check_seed(self._options.training.seed)
        built = self._parser.instantiate(self._options)
        self.config = RunConfig(**{field.name: built[field.name] for field in fields(RunConfig)})

    @cached_property
    def origin(self) -> DenoisingPipeline | None:
        """Pipeline that the training starts from, if any."""
        if self.config.init_from is None:
            return None
        origin = find_pipeline(self.config.init_from)
        if distilled_calls(origin.scheduler.config):
            raise ValueError(f"{self.config.init_from} is distilled, for a few noise levels only; give its teacher")
        return origin

    @property
    def image_shape(self) -> tuple[int | None, tuple[int, int] | None]:
        """Channels, and height and width, that the network asks of the images; None for the images' own."""
        size = self._given.get("sample_size")
        if size is None and self.origin is not None:
            size = self.origin.unet.config.sample_size
        return self._given.get("in_channels"), None if size is None else pair(size)

    def build(self, shape: tuple[int, int, int], num_classes: int | None) -> tuple[ModelMixin, DDPMScheduler]:
        """Build the network and the noise schedule for images.

        Args:
            shape: Channels, height and width of the images.
            num_classes: Classes of the images; None without labels.

        Raises:
            ValueError: If an option of the network is wrong, or the weights to start from do not fit it.
        """
        channels, height, width = shape
        ends = {
            "sample_size": height if height == width else (height, width),
            "in_channels": channels,
            "out_channels": channels,
            "num_class_embeds": num_classes,
        }
        options = self._options.clone()
        arguments = options.model.init_args
        if self.origin is not None:
            inherited = {**self.origin.unet.config, **ends}
            schedule = {**self.origin.noise_schedule.config, **self._given_schedule}
            for name in vars(options.scheduler):
                options.scheduler[name] = schedule.get(name, options.scheduler[name])
        else:
            inherited = ends
        for name in vars(arguments):
            if name not in self._given and name in inherited:
                arguments[name] = inherited[name]
        torch.manual_seed(self.config.training.seed)  # initial weights come from the global generator
        built = self._parser.instantiate(options)
        if self.origin is not None:
            start_from(built.model, built.scheduler, self.origin, str(self.config.init_from))
        return built.model, built.scheduler


def _with_default_config(arguments: Sequence[str]) -> list[str]:
    """Put the default config in front if none is given; its data and run folder are FashionMNIST's alone."""
    given = {}
    for word, following in pairwise([*arguments, ""]):
        option, separator, value = word.partition("=")
        given[option] = value if separator else following
    if "--config" in given:
        return list(arguments)
    source = given.get("--data.source", DEFAULT)
    own = [] if source == DEFAULT else ["--data.size", "null", "--output_dir", str(Path("runs", Path(source).stem))]
    return ["--config", DEFAULT, *own, *arguments]
