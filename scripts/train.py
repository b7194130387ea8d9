"""Train a denoiser on FashionMNIST: accelerate launch scripts/train.py --config configs/fashion_mnist.yaml."""

import shlex
import sys
from pathlib import Path

from denoiser.cli import run
from denoiser.data import load_fashion_mnist
from denoiser.training import Trainer, start_accelerator
from denoiser.training.command import parse_run
from denoiser.training.processes import check_launch


def python() -> str:
    """Return what to type for this Python: its path from here if it is below, as a virtual environment's is."""
    executable = Path(sys.executable)
    return str(executable.relative_to(Path.cwd()) if executable.is_relative_to(Path.cwd()) else executable)


def main() -> None:
    """Train, and say what was made and what to type next."""
    config, model, scheduler = parse_run(sys.argv[1:], __doc__)
    accelerator = start_accelerator(config)
    check_launch(accelerator.num_processes)
    with accelerator.main_process_first():  # which downloads or resizes, where need be; the others find it done
        images = load_fashion_mnist(config.data.root, "train", model.config.sample_size)
        held_out = load_fashion_mnist(config.data.root, "test", model.config.sample_size)
    command = shlex.join(["accelerate", "launch", *sys.argv])
    trainer = Trainer(config, model, scheduler, accelerator, images, held_out, command)
    if trainer.finished:
        accelerator.print(f"the run in {trainer.folder.path} is finished: {trainer.folder.pipeline}")
        return
    accelerator.print(
        f"training {type(model).__name__} ({model.num_parameters():,} parameters) on {len(images):,} images: "
        f"{accelerator.num_processes} process(es), {accelerator.device}, precision {accelerator.mixed_precision}, "
        f"from step {trainer.step}"
    )
    sync_command = trainer.train()
    accelerator.print(f"\nrun folder:   {trainer.folder.path}\npipeline:     {trainer.folder.pipeline}")
    accelerator.print(f"sample grid:  {trainer.folder.grid(trainer.step)}")
    if sync_command:
        accelerator.print(f"logged offline; to upload: {sync_command}")
    accelerator.print(f"next: {python()} scripts/sample.py --pipeline {trainer.folder.pipeline}")


if __name__ == "__main__":
    run(main)
