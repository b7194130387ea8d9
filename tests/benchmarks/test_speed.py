from itertools import product
from types import SimpleNamespace

from benchmarks import speed
from benchmarks.speed import PerImage, alternate, feeding_speeds, sampling_speeds
from denoiser.data import load_fashion_mnist
from tests.conftest import DATA_ROOT


def test_jobs_take_turns():
    calls = []

    def job(name, images):
        return lambda: calls.append(name) or images

    alternate({"a": job("a", 1), "b": job("b", 2)}, rounds=2)
    assert calls == ["a", "b"] * 3


def test_the_first_round_is_told_apart_from_the_median_of_the_others(monkeypatch):
    clock, seconds = SimpleNamespace(now=0.0), iter((50.0, 1.0, 4.0, 2.0))

    def job():
        clock.now += next(seconds)
        return 8

    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    assert alternate({"job": job}, rounds=3)["job"] == {
        "first_round_seconds": 50,
        "images_per_second": 4,
        "slowest_round": 2,
        "fastest_round": 8,
    }


def test_sampling_speeds_are_of_every_network_and_batch_size(field):
    rows = sampling_speeds(list(field.entries.values()), batch_sizes=(1, 2), steps=[1, 2], rounds=1)
    seen = [(row["batch_size"], row["steps"], row["name"]) for row in rows]
    assert seen == [*product((1, 2), (1, 2), ("wide", "narrow"))]


def test_a_speed_is_of_the_time_that_the_calls_of_the_network_take(field, monkeypatch):
    clock, ticks = SimpleNamespace(now=0.0), iter((2.0, 0.5))  # seconds that a call of each network takes

    def with_clock(model):
        tick = next(ticks)
        model.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + tick))
        return 1000

    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(speed, "operations_per_image", with_clock)
    monkeypatch.setattr(speed, "matmul_speed", lambda: 8000.0)
    rows = sampling_speeds(list(field.entries.values()), batch_sizes=(6,), steps=[3], rounds=2)
    assert [(row["name"], row["images_per_second"]) for row in rows] == [("wide", 6 / 3 / 2), ("narrow", 6 / 3 / 0.5)]
    assert [row["share_of_peak"] for row in rows] == [6 / 2 * 1000 / 8000, 6 / 0.5 * 1000 / 8000]


def test_the_usual_input_path_gives_the_images_that_training_sees(train_images):
    image, label = PerImage(load_fashion_mnist(DATA_ROOT, "train", 28))[7]
    ours, labels = train_images.batch([7])
    assert label == labels.item()
    assert (image - ours[0]).abs().max() < 0.05  # PIL and torchvision round differently when they resize


def test_feeding_speeds_compare_with_the_data_loader():
    rows = feeding_speeds(str(DATA_ROOT), batch_size=4, batches=2, rounds=1)
    assert [row["name"].split(",")[0] for row in rows] == ["denoiser", "torchvision", "torchvision"]
