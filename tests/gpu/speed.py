"""Training and sampling speed on a GPU beside `UNet2DModel`: python -m tests.gpu.speed."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.command import NETWORKS
from benchmarks.entries import Entry, read_field
from benchmarks.machine import processor
from benchmarks.speed import alternate, sampling_speeds
from benchmarks.tables import speed_table
from denoiser.data import load_fashion_mnist
from denoiser.processes import start_process
from pipelines.training import Learner, start_accelerator
from tests.conftest import DATA_ROOT, another_process

BATCH_SIZES, COMPILED_BATCH_SIZE = (128, 512), 512
ROUNDS, STEPS_A_ROUND, SAMPLING_STEPS = 3, 20, 20
BASELINE = "UNet2DModel, float32 (TF32)"
# "tuned" is what a user of diffusers could shape with what we know (benchmarks/configs/networks.yaml).
SHAPES = ("UNet", "UNet2DModel", "UNet2DModel, tuned")


def variant(entry: Entry, precision: str, **options: object) -> Entry:
    """Return an entry in another precision, with further options of its training."""
    given = {"mixed_precision": precision, **options}
    words = [word for name, value in given.items() for word in (f"--training.{name}", str(value))]
    return replace(entry, name=f"{entry.name}, {precision}", arguments=(*entry.arguments, *words))


def training_speed(entry: Entry, batch_size: int, deterministic: bool = True) -> dict[str, object]:
    """Measure a training on its own; Accelerate has one precision in a process at a time."""
    another_process()
    torch._dynamo.reset()
    config, model, noise_schedule = entry.build(entry.seconds[0], seed=0)
    training = replace(config.training, batch_size=batch_size)
    accelerator = start_accelerator(replace(config, training=training))
    torch.backends.cudnn.allow_tf32 = True  # as PyTorch comes
    torch.backends.cudnn.deterministic = deterministic
    learner = Learner(training, model, noise_schedule, accelerator, images_of(config.data.root))

    def steps() -> int:
        for _ in range(STEPS_A_ROUND):
            learner.take_step(0.5)
        return STEPS_A_ROUND * batch_size

    return {"name": entry.name, "batch_size": batch_size, **alternate({"": steps}, ROUNDS)[""]}


def images_of(root: str):
    """Return the training images, read once."""
    if not IMAGES:
        IMAGES.append(load_fashion_mnist(root))
    return IMAGES[0]


IMAGES: list = []


def show(title: str, rows: Sequence[dict[str, object]], baseline: str) -> None:
    """Print a table."""
    print(f"\n{title}:\n\n{speed_table(rows, baseline)}", flush=True)


def main() -> None:
    """Print the tables, those without compilation first."""
    start_process()
    print(processor())
    entries = [read_field(NETWORKS, str(DATA_ROOT)).entries[name] for name in SHAPES]
    plain = [variant(entry, precision) for entry in entries for precision in ("no", "bf16")]
    plain = [replace(entry, name=entry.name.replace(", no", ", float32 (TF32)")) for entry in plain]

    rows = [training_speed(entry, batch_size) for batch_size in BATCH_SIZES for entry in plain]
    free = [training_speed(plain[1], batch_size, deterministic=False) for batch_size in BATCH_SIZES]
    rows += [{**row, "name": f"{row['name']}, any algorithm"} for row in free]
    show("Training", rows, BASELINE)

    another_process()
    start_process()
    torch.backends.cudnn.allow_tf32 = True
    show("Sampling", sampling_speeds(plain, BATCH_SIZES, [SAMPLING_STEPS], ROUNDS), BASELINE)

    rows = [training_speed(variant(entry, "bf16", compile="true"), COMPILED_BATCH_SIZE) for entry in entries]
    show("Training, compiled", rows, "UNet2DModel, bf16")
    another_process()
    start_process()
    rough = [variant(entry, "bf16") for entry in entries]
    rows = sampling_speeds(rough, [COMPILED_BATCH_SIZE], [SAMPLING_STEPS], ROUNDS, compiled=True)
    show("Sampling, compiled", rows, "UNet2DModel, bf16")


if __name__ == "__main__":
    main()
