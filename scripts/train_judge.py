"""Train the judge, the classifier of the evaluation, into the package: python scripts/train_judge.py."""

import sys

from denoiser.checks import check_positive
from denoiser.data import load_fashion_mnist
from pipelines.commands.parser import Parser, command
from pipelines.evaluation.judge import CARD, WEIGHTS, Judge, accuracy, save_judge, train_judge

LEAST_ACCURACY = 0.92


@command
def main() -> None:
    """Train, test and save the judge."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data_root", type=str, default="data", help="folder of FashionMNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=16)
    options = parser.parse_args(sys.argv[1:])
    check_positive(epochs=options.epochs)
    splits = {
        "train": load_fashion_mnist(options.data_root, "train"),
        "test": load_fashion_mnist(options.data_root, "test"),
    }

    def tell(epoch: int, judge: Judge) -> None:
        print(f"epoch {epoch + 1} of {options.epochs}: test accuracy {accuracy(judge, splits['test']):.4f}", flush=True)

    judge = train_judge(splits["train"], options.seed, options.epochs, on_epoch=tell)
    for split, images in splits.items():
        judge.measure(split, images)
    if (reached := accuracy(judge, splits["test"])) < LEAST_ACCURACY:
        raise ValueError(f"the judge's test accuracy is {reached:.4f}, below {LEAST_ACCURACY}; train for more epochs")
    save_judge(judge, reached, options.seed)
    print(f"{WEIGHTS}\n{CARD}")


if __name__ == "__main__":
    main()
