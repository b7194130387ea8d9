"""Train a denoiser: accelerate launch scripts/train.py --data.source my_images."""

from pipelines.commands.train import main

if __name__ == "__main__":
    main()
