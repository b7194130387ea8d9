"""Train the classifier whose features judge samples, and write it into the package: python scripts/train_judge.py."""

import sys

from denoiser.cli import Parser, run
from denoiser.data import load_fashion_mnist
from denoiser.evaluation.judge import CARD, WEIGHTS, Judge, accuracy, save_judge, train_judge


def main() -> None:
    """Train, test and save the judge."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data_root", type=str, default="data", help="folder of FashionMNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=16)
    options = parser.parse_args(sys.argv[1:])
    splits = {
        "train": load_fashion_mnist(options.data_root, "train"),
        "test": load_fashion_mnist(options.data_root, "test"),
    }

    def tell(epoch: int, judge: Judge) -> None:
        print(f"epoch {epoch + 1} of {options.epochs}: test accuracy {accuracy(judge, splits['test']):.4f}", flush=True)

    judge = train_judge(splits["train"], options.seed, options.epochs, on_epoch=tell)
    for split, images in splits.items():
        judge.measure(split, images)
    save_judge(judge, accuracy(judge, splits["test"]), options.seed)
    print(f"{WEIGHTS}\n{CARD}")


if __name__ == "__main__":
    run(main)
