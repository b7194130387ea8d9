"""Train a denoiser on FashionMNIST: accelerate launch scripts/train.py --config configs/fashion_mnist.yaml."""

from pipelines.commands.train import main

if __name__ == "__main__":
    main()
