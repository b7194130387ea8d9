"""Train a denoiser on FashionMNIST: accelerate launch scripts/train.py --config configs/fashion_mnist.yaml."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from diffusers import DDPMScheduler, ModelMixin

from denoiser.checks import check_seed
from denoiser.data import load_fashion_mnist
from pipelines.commands.parser import Parser, command
from pipelines.training import RunConfig, Trainer, start_accelerator


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
    sections = [field.name for field in fields(RunConfig) if field.name != "resume"]
    if empty := [name for name in sections if namespace[name] is None]:
        raise ValueError(f"the config has nothing under '{empty[0]}'; leave a section out if it is empty")
    check_seed(namespace.training.seed)
    torch.manual_seed(namespace.training.seed)  # PyTorch draws initial weights from the global generator only
    built = parser.instantiate(namespace)
    config = RunConfig(**{field.name: built[field.name] for field in fields(RunConfig)})
    return config, built.model, built.scheduler


def train_and_tell(trainer: Trainer, what: str) -> None:
    """Train to the end; say what is trained, what was made and what to type next."""
    accelerator, folder = trainer.accelerator, trainer.folder
    if trainer.finished:
        accelerator.print(f"the run in {folder.path} is finished: {folder.pipeline}")
        return
    accelerator.print(
        f"{what}: {accelerator.num_processes} process(es), {accelerator.device}, "
        f"precision {accelerator.mixed_precision}, from step {trainer.step}"
    )
    sync_command = trainer.train()
    accelerator.print(f"\nrun folder:   {folder.path}\npipeline:     {folder.pipeline}")
    if folder.grid(trainer.step).exists():  # it could not be drawn otherwise, which a warning has said
        accelerator.print(f"sample grid:  {folder.grid(trainer.step)}")
    if sync_command:
        accelerator.print(f"logged offline; to upload: {sync_command}")
    script = Path(sys.argv[0]).resolve().with_name("sample.py")
    accelerator.print(
        f"next: {shlex.join([sys.executable, str(script), '--pipeline', str(folder.pipeline.resolve())])}"
    )


def typed_command() -> str:
    """Return what makes this run again, from the project's folder: the script and the options that were typed."""
    return shlex.join(["accelerate", "launch", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])


@command
def main() -> None:
    """Train, and say what was made and what to type next."""
    config, model, scheduler = parse_run(sys.argv[1:], __doc__)
    accelerator = start_accelerator(config)
    with accelerator.main_process_first():  # which downloads or resizes, where need be; the others find it done
        images = load_fashion_mnist(config.data.root, "train", model.config.sample_size)
        held_out = load_fashion_mnist(config.data.root, "test", model.config.sample_size)
    what = f"training {type(model).__name__} ({model.num_parameters():,} parameters) on {len(images):,} images"
    train_and_tell(Trainer(config, model, scheduler, accelerator, images, held_out, typed_command()), what)


if __name__ == "__main__":
    main()
