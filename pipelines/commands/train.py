"""Train a denoiser: accelerate launch scripts/train.py --data.source my_images.

Without --config, the network and the training are those of configs/fashion_mnist.yaml.
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from denoiser.data import DataConfig, ImageSet, load_sets
from denoiser.data.source import path_of
from denoiser.processes import tell
from pipelines.commands.parsed_run import ParsedRun
from pipelines.commands.parser import command
from pipelines.commands.prepare import preparation_bar
from pipelines.training import Learner, Trainer, start_accelerator


def load_images(config: DataConfig, output_dir: str) -> tuple[ImageSet, ImageSet | None]:
    """Load the images of a run, and the held-out ones.

    What is not prepared is prepared by one process of each machine, for which the others wait. Raises
    `ValueError` if the run would write into the folder of its images.
    """
    source = path_of(config.source)
    if source.is_dir() and Path(output_dir).resolve().is_relative_to(source.resolve()):
        raise ValueError(f"output_dir {output_dir} lies in {source}, the folder of the images; give another")
    with preparation_bar() as on_progress:
        images, held_out = load_sets(config, on_progress=on_progress)
    if held_out is None:
        tell(["no images are held out: the training is not evaluated"])
    return images, held_out


def train_and_report(trainer: Trainer, what: str) -> None:
    """Train to the end; print what is trained, what was written and the next command."""
    accelerator, folder = trainer.accelerator, trainer.folder
    # Accelerate's own prints once a machine
    say: Callable[[str], object] = print if accelerator.is_main_process else lambda line: None
    if trainer.finished:
        say(f"the run in {folder.path} is finished: {folder.pipeline}")
        trainer.push()
        return
    say(
        f"{what}: {accelerator.num_processes} process(es), {accelerator.device}, "
        f"precision {accelerator.mixed_precision}, from step {trainer.step}"
    )
    sync_command = trainer.train()
    say(f"\nrun folder:   {folder.path}\npipeline:     {folder.pipeline}")
    if folder.grid(trainer.step).exists():  # a warning has told why not
        say(f"sample grid:  {folder.grid(trainer.step)}")
    if sync_command:
        say(f"logged offline; to upload: {sync_command}")
    say(f"next: {shlex.join([*_sample_command(), '--pipeline', str(folder.pipeline.resolve())])}")


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
    run = ParsedRun(sys.argv[1:], __doc__)
    config = replace(run.config, data=run.data)
    accelerator = start_accelerator(config)
    images, held_out = load_images(config.data, config.output_dir)
    model, noise_schedule = run.build(images.shape, len(images.class_names) or None)
    what = f"training {type(model).__name__} ({model.num_parameters():,} parameters) on {len(images):,} images"
    if held_out is not None:
        what += f", {len(held_out):,} held out"
    learner = Learner(config.training, model, noise_schedule, accelerator, images)
    train_and_report(Trainer(config, learner, held_out, typed_command()), what)


if __name__ == "__main__":
    main()
