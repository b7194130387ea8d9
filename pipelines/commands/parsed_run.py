"""A training's command line and config file, and what they build for an image set."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, ModelMixin
from jsonargparse import Namespace

from denoiser.checks import check_seed, pair
from denoiser.data import DataConfig
from denoiser.data.source import path_of
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
        words = self._with_config(arguments)
        self._options = self._parser.parse_args(words)
        given = self._parser.parse_args(words, defaults=False)
        network = vars(given.model.get("init_args", Namespace()))  # a size of null is the images'
        self._given = {name: value for name, value in network.items() if (name, value) != ("sample_size", None)}
        self._given_schedule: Mapping[str, Any] = vars(given.get("scheduler") or Namespace())
        if words is not arguments:  # of the default config no noise schedule was asked for
            typed = {word.partition("=")[0] for word in arguments}
            self._given_schedule = {
                name: value for name, value in self._given_schedule.items() if f"--scheduler.{name}" in typed
            }
        sections = [field.name for field in fields(RunConfig) if field.default is not None]
        if empty := [name for name in sections if self._options[name] is None]:
            raise ValueError(f"the config has nothing under '{empty[0]}'; leave a section out if it is empty")
        check_seed(self._options.training.seed)
        if self._options.data.size is not None:  # of which a network's size is told before images are prepared
            sizes = [
                pair(size) for size in (self._options.data.size, self._given.get("sample_size")) if size is not None
            ]
            if len(set(sizes)) > 1:
                raise ValueError(f"data.size is {sizes[0]}, and model.sample_size {sizes[1]}; give one of them")
            if "sample_size" in self._options.model.init_args:
                self._options.model.init_args.sample_size = as_sample_size(*sizes[0])
        built = self._parser.instantiate(self._options)
        self.config = RunConfig(**{field.name: built[field.name] for field in fields(RunConfig)})

    def _with_config(self, arguments: Sequence[str]) -> Sequence[str]:
        """Put the default config in front if none is given; its size and run folder are FashionMNIST's alone."""
        if any(word.partition("=")[0] == "--config" for word in arguments):
            return arguments
        words = ["--config", DEFAULT, *arguments]
        source = self._parser.parse_args([word for word in words if word != "--print_config"]).data.source
        if source == DataConfig.source:
            return words
        folder = Path("runs", path_of(source).resolve().stem or "images")
        return ["--config", DEFAULT, "--data.size", "null", "--output_dir", str(folder), *arguments]

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
    def data(self) -> DataConfig:
        """Settings of the set, of the network's size if that is given and the set's is not."""
        config, size = self.config.data, self._given.get("sample_size")
        if size is None and self.origin is not None:
            size = self.origin.unet.config.sample_size
        return replace(config, size=size if config.size is None else config.size)

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
            "sample_size": as_sample_size(height, width),
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


def as_sample_size(height: int, width: int) -> int | tuple[int, int]:
    """Return the `sample_size` of a network: one number for square images, which some networks ask for."""
    return height if height == width else (height, width)
