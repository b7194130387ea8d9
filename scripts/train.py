"""Train a denoiser on FashionMNIST: accelerate launch scripts/train.py --config configs/fashion_mnist.yaml."""

import sys

from denoiser.cli import run
from denoiser.data import load_fashion_mnist
from denoiser.training import Trainer, start_accelerator
from denoiser.training.command import parse_run, train_and_tell, typed_command


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
    run(main)
