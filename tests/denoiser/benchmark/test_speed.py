from itertools import product

from denoiser.benchmark.speed import PerImage, alternate, feeding_speeds, sampling_speeds
from denoiser.data import load_fashion_mnist
from tests.conftest import DATA_ROOT


def test_jobs_take_turns_and_the_first_round_does_not_count():
    calls = []

    def job(name, images):
        return lambda: calls.append(name) or images

    speeds = alternate({"a": job("a", 1), "b": job("b", 2)}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in speeds.items()} == {"a": 2, "b": 2}


def test_sampling_speeds_are_of_every_network_and_batch_size(field):
    rows = sampling_speeds(list(field.entries.values()), batch_sizes=(1, 2), steps=[1, 2], rounds=1)
    seen = [(row["batch_size"], row["steps"], row["name"]) for row in rows]
    assert seen == [*product((1, 2), (1, 2), ("wide", "narrow"))]
    assert all(row["slowest_round"] <= row["images_per_second"] <= row["fastest_round"] for row in rows)


def test_the_usual_input_path_gives_the_images_that_training_sees(train_images):
    image, label = PerImage(load_fashion_mnist(DATA_ROOT, "train", 28))[7]
    ours, labels = train_images.batch([7])
    assert label == labels.item()
    assert (image - ours[0]).abs().max() < 0.05  # PIL and torchvision round differently when they resize


def test_feeding_speeds_compare_with_the_data_loader():
    rows = feeding_speeds(str(DATA_ROOT), batch_size=4, batches=2, rounds=1)
    assert [row["name"].split(",")[0] for row in rows] == ["denoiser", "torchvision", "torchvision"]
