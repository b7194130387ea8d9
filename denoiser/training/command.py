"""What `scripts/train.py` is told: its command line, and the run that this describes."""

from collections.abc import Sequence
from dataclasses import fields

import torch
from diffusers import DDPMScheduler, ModelMixin

from denoiser.checks import check_seed
from denoiser.cli import Parser
from denoiser.training.config import RunConfig


def parse_run(arguments: Sequence[str], description: str | None = None) -> tuple[RunConfig, ModelMixin, DDPMScheduler]:
    """Read the config file and the command line, and build what they describe.

    What is wrong ends the program with one line and exit status 2.

    Args:
        arguments: Such as `["--config", "configs/fashion_mnist.yaml", "--training.seed", "1"]`.
        description: What `--help` says first.
    """
    parser = Parser(description=description)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_class_arguments(RunConfig)
    parser.add_subclass_arguments(ModelMixin, "model", required=True, help="denoiser.UNet or denoiser.BasicUNet")
    parser.add_class_arguments(DDPMScheduler, "scheduler")
    namespace = parser.parse_args(list(arguments))
    check_seed(namespace.training.seed)
    torch.manual_seed(namespace.training.seed)  # PyTorch draws initial weights from the global generator only
    built = parser.instantiate(namespace)
    config = RunConfig(**{field.name: built[field.name] for field in fields(RunConfig)})
    return config, built.model, built.scheduler
