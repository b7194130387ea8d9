"""Train the two classifiers whose features evaluate a set: python scripts/train_judge.py --data.source my_images."""

import logging
import sys
from functools import partial

from accelerate import Accelerator

from denoiser.checks import check_positive
from denoiser.data import DataConfig, ImageSet, load_fashion_mnist, load_sets
from denoiser.device import must_use_cpu
from denoiser.files import check_writable
from denoiser.processes import start_process
from pipelines.commands.parser import Parser, command
from pipelines.evaluation.judge import CPU, PACKAGE, accuracy, card_file, measure, save_judge, train_judge, weights_file
from pipelines.evaluation.judge_networks import JUDGES, Judge

logger = logging.getLogger(__name__)

LEAST_ACCURACY = 0.92  # of the judges that ship
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
    parser.add_argument("--seed", type=int, default=0, help="of the first judge; the second has the next")
    parser.add_argument("--epochs", type=int | None, help="(default: 16, or as many as make 1,000 steps)")
    parser.add_argument("--flips", type=bool, default=False, help="flip images; not for digits, letters or arrows")
    parser.add_argument("--package", type=bool, default=False, help="make the judges that ship: FashionMNIST at 16x16")
    return parser


def tell(held_out: ImageSet, epoch: int, epochs: int, judge: Judge) -> None:
    """Print the accuracy after some of the epochs."""
    if epoch == epochs or epoch % max(1, epochs // LINES) == 0:
        reached = accuracy(judge, held_out)
        print(f"{judge.kind}, epoch {epoch} of {epochs}: held-out accuracy {reached:.4f}", flush=True)


def test_judge(judge: Judge, train: ImageSet, held_out: ImageSet) -> float:
    """Set a judge's reference statistics, and return its accuracy on the held-out images."""
    known, reached = accuracy(judge, train), accuracy(judge, held_out)
    print(f"{judge.kind}: accuracy on the training images {known:.4f}, on the held-out images {reached:.4f}")
    if known - reached > MOST_APART:
        logger.warning(
            f"{judge.kind} knows its training images by heart: its distances see copies of them as better than new "
            "images; more images, fewer --epochs or, where they are harmless, --flips true help"
        )
    measure(judge, "train", train)
    measure(judge, "test", held_out)
    return reached


@command
def main() -> None:
    """Train, test and save both judges."""
    parser = build_parser()
    options = parser.instantiate(parser.parse_args(sys.argv[1:]))
    if options.epochs is not None:
        check_positive(epochs=options.epochs)
    if not start_process().is_main_process:
        return  # judges are one process's work
    if options.package:
        if options.data != DataConfig(root=options.data.root):
            raise ValueError("of the set's options, --package takes data.root alone; leave the others out")
        train, held_out = (load_fashion_mnist(options.data.root, split) for split in ("train", "test"))
        folder, flips, device = PACKAGE, True, CPU
    else:
        train, held_out = labelled_sets(options.data)
        assert train.folder is not None
        folder, flips, device = train.folder, options.flips, Accelerator(cpu=must_use_cpu()).device

    for kind in JUDGES:
        check_writable(weights_file(kind, folder))
    trained = []
    for seed, kind in enumerate(JUDGES, options.seed):
        judge = train_judge(kind, train, seed, options.epochs, flips, device=device, on_epoch=partial(tell, held_out))
        reached = test_judge(judge, train, held_out)
        if options.package and reached < LEAST_ACCURACY:
            raise ValueError(
                f"the test accuracy of {kind} is {reached:.4f}, below {LEAST_ACCURACY}; give more --epochs"
            )
        trained.append((judge, reached, seed))
    for judge, reached, seed in trained:  # together: a folder with one of the two is refused
        save_judge(judge, reached, seed, folder)
        print(f"{weights_file(judge.kind, folder)}\n{card_file(judge.kind, folder)}")


if __name__ == "__main__":
    main()
