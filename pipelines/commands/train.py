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
from pipelines.training import Learner, RunConfig, Trainer, start_accelerator


def parse_run(arguments: Sequence[str], description: str | None = None) -> tuple[RunConfig, ModelMixin, DDPMScheduler]:
    """Parse a training's command line and config file, and build what they describe.

    Errors end the program with one line and exit status 2.
    """
    parser = Parser(description=description)
    parser.add_argument("--config", action="config", help="YAML file; the options after it override it")
    parser.add_class_arguments(RunConfig)
    parser.add_subclass_arguments(ModelMixin, "model", required=True, help="denoiser.UNet or denoiser.BasicUNet")
    parser.add_class_arguments(DDPMScheduler, "scheduler")
    namespace = parser.parse_args(list(arguments))
    sections = [field.name for field in fields(RunConfig) if field.default is not None]
    if empty := [name for name in sections if namespace[name] is None]:
        raise ValueError(f"the config has nothing under '{empty[0]}'; leave a section out if it is empty")
    check_seed(namespace.training.seed)
    torch.manual_seed(namespace.training.seed)  # initial weights come from the global generator
    built = parser.instantiate(namespace)
    config = RunConfig(**{field.name: built[field.name] for field in fields(RunConfig)})
    return config, built.model, built.scheduler


def train_and_report(trainer: Trainer, what: str) -> None:
    """Train to the end; print what is trained, what was written and the next command."""
    accelerator, folder = trainer.accelerator, trainer.folder
    if trainer.finished:
        accelerator.print(f"the run in {folder.path} is finished: {folder.pipeline}")
        trainer.push()
        return
    accelerator.print(
        f"{what}: {accelerator.num_processes} process(es), {accelerator.device}, "
        f"precision {accelerator.mixed_precision}, from step {trainer.step}"
    )
    sync_command = trainer.train()
    accelerator.print(f"\nrun folder:   {folder.path}\npipeline:     {folder.pipeline}")
    if folder.grid(trainer.step).exists():  # a warning has told why not
        accelerator.print(f"sample grid:  {folder.grid(trainer.step)}")
    if sync_command:
        accelerator.print(f"logged offline; to upload: {sync_command}")
    accelerator.print(f"next: {shlex.join([*_sample_command(), '--pipeline', str(folder.pipeline.resolve())])}")


def _sample_command() -> list[str]:
    """Return the command that samples, as this program was called: installed, as a module or as a script."""
    program = Path(sys.argv[0]).resolve()
    if program.name.startswith("denoiser-"):
        return [str(program.with_name("denoiser-sample"))]
    if program.parent == Path(__file__).parent:
        return [sys.executable, "-m", "pipelines.commands.sample"]
    return [sys.executable, str(program.with_name("sample.py"))]


def typed_command() -> str:
    """Return the command line of this run, for its model card."""
    program = Path(sys.argv[0])
    called = ["accelerate", "launch", f"scripts/{program.name}"]
    if program.name.startswith("denoiser-"):
        called = [program.name]
    elif program.resolve().parent == Path(__file__).parent:
        called = ["accelerate", "launch", "-m", f"pipelines.commands.{program.stem}"]
    return shlex.join([*called, *sys.argv[1:]])


@command
def main() -> None:
    """Train, and print what was written and the next command."""
    config, model, noise_schedule = parse_run(sys.argv[1:], __doc__)
    accelerator = start_accelerator(config)
    with accelerator.main_process_first():  # which downloads what is missing
        images = load_fashion_mnist(config.data.root, "train", model.config.sample_size)
        held_out = load_fashion_mnist(config.data.root, "test", model.config.sample_size)
    what = f"training {type(model).__name__} ({model.num_parameters():,} parameters) on {len(images):,} images"
    learner = Learner(config.training, model, noise_schedule, accelerator, images)
    train_and_report(Trainer(config, learner, held_out, typed_command()), what)


if __name__ == "__main__":
    main()
