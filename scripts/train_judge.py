"""Train the classifier whose features evaluate a set: python scripts/train_judge.py --data.source my_images."""

import logging
import sys

from accelerate import Accelerator

from denoiser.checks import check_positive
from denoiser.data import DataConfig, ImageSet, load_fashion_mnist, load_sets
from denoiser.device import must_use_cpu
from denoiser.files import check_writable
from denoiser.processes import start_process
from pipelines.commands.parser import Parser, command
from pipelines.evaluation.judge import CARD, CPU, PACKAGE, WEIGHTS, Judge, accuracy, save_judge, train_judge

logger = logging.getLogger(__name__)

LEAST_ACCURACY = 0.92  # of the judge that ships
MOST_APART = 0.15  # between the accuracies on training and on held-out images
LINES = 16  # about evenly in the training


def labelled_sets(data: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Load a set that a classifier can be trained on."""
    train, held_out = load_sets(data)
    if not train.class_names:
        raise ValueError(f"{data.source} has no classes; a set without them is evaluated without a classifier")
    if held_out is None or len(held_out) < 2:
        raise ValueError(f"{data.source} has too few held-out images to test a classifier; give --data.held_out 0.1")
    return train, held_out


def build_parser() -> Parser:
    """Return the parser of this command."""
    parser = Parser(description=__doc__)
    parser.add_class_arguments(DataConfig, "data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int | None, help="(default: 16, or as many as make 1,000 steps)")
    parser.add_argument("--flips", type=bool, default=False, help="flip images; not for digits, letters or arrows")
    parser.add_argument("--package", type=bool, default=False, help="make the judge that ships: FashionMNIST at 16x16")
    return parser


@command
def main() -> None:
    """Train, test and save the judge."""
    parser = build_parser()
    options = parser.instantiate(parser.parse_args(sys.argv[1:]))
    if options.epochs is not None:
        check_positive(epochs=options.epochs)
    if not start_process().is_main_process:
        return  # a judge is one process's work
    if options.package:
        if options.data != DataConfig(root=options.data.root):
            raise ValueError("of the set's options, --package takes data.root alone; leave the others out")
        train, held_out = (load_fashion_mnist(options.data.root, split) for split in ("train", "test"))
        folder, flips, device = PACKAGE, True, CPU
    else:
        train, held_out = labelled_sets(options.data)
        assert train.folder is not None
        folder, flips, device = train.folder, options.flips, Accelerator(cpu=must_use_cpu()).device

    check_writable(folder / WEIGHTS)

    def tell(epoch: int, epochs: int, judge: Judge) -> None:
        if epoch == epochs or epoch % max(1, epochs // LINES) == 0:
            print(f"epoch {epoch} of {epochs}: held-out accuracy {accuracy(judge, held_out):.4f}", flush=True)

    judge = train_judge(train, options.seed, options.epochs, flips, device=device, on_epoch=tell)
    known, reached = accuracy(judge, train), accuracy(judge, held_out)
    print(f"accuracy on the training images {known:.4f}, on the held-out images {reached:.4f}")
    if options.package and reached < LEAST_ACCURACY:
        raise ValueError(f"the judge's test accuracy is {reached:.4f}, below {LEAST_ACCURACY}; train for more epochs")
    if known - reached > MOST_APART:
        logger.warning(
            "the classifier knows its training images by heart: its distances see copies of them as better than new "
            "images; more images, fewer --epochs or, where they are harmless, --flips true help"
        )
    judge.measure("train", train)
    judge.measure("test", held_out)
    save_judge(judge, reached, options.seed, folder)
    print(f"{folder / WEIGHTS}\n{folder / CARD}")


if __name__ == "__main__":
    main()
