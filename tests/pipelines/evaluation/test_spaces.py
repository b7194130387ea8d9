"""Feature spaces of any set: sizes, channels, few images, and known damages in the order of their strength."""

import hashlib

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from denoiser.data import DataConfig, ImageSet, load_sets
from pipelines.evaluation.distances import Moments, frechet_distance
from pipelines.evaluation.judge import (
    accuracy,
    find_judges,
    judge_images,
    load_judges,
    measure,
    save_judge,
    train_judge,
    weights_file,
)
from pipelines.evaluation.judge_networks import JUDGES
from pipelines.evaluation.spaces import (
    BATCH_SIZE,
    NUM_COMPONENTS,
    RandomNetwork,
    beside,
    best_spaces,
    fixed_space,
    pixel_space,
    rows_like,
    some_batches,
    some_rows,
)
from tests.pipelines.evaluation.conftest import in_colours, noisy


def test_the_fixed_convolutions_are_the_same_on_every_machine():
    digest = hashlib.sha256(b"".join(weights.numpy().tobytes() for weights in RandomNetwork(3).buffers())).hexdigest()
    assert digest == "63909b572618eeb19ff37cbd86a87d2d9d00725b6e5107860e20582edcacf3f9"


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 9, 30), (3, 32, 32), (4, 256, 64)])
def test_both_spaces_are_of_any_size_and_channels(shape):
    images = torch.randint(0, 256, (30, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for space, width in ((fixed_space(ImageSet(images)), 128), (pixel_space(ImageSet(images)), 29)):
        features = space.features(images)
        assert features.shape == (30, width)
        assert features.isfinite().all()
        assert features.var(dim=0).mean().item() == pytest.approx(1, rel=0.05)
        torch.testing.assert_close(features.mean(dim=0), torch.zeros(width), atol=1e-4, rtol=0)


def test_images_that_are_all_the_same_have_finite_features():
    images = torch.full((5, 3, 16, 16), 7, dtype=torch.uint8)
    for space in (fixed_space(ImageSet(images)), pixel_space(ImageSet(images))):
        assert space.features(images).abs().max() < 0.01


def test_there_are_no_more_components_than_pixels():
    images = torch.randint(0, 256, (100, 1, 8, 4), dtype=torch.uint8)
    assert pixel_space(ImageSet(images)).features(images).shape == (100, 32) != (100, NUM_COMPONENTS)


DAMAGES = {
    "noise": lambda images, strength: noisy(images, 8 * strength),
    "blur": lambda images, strength: gaussian_blur(images, [3, 3], [0.2 + 0.2 * strength] * 2),
    "shift": lambda images, strength: images.roll(strength, dims=3),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_fixed_convolutions_see_damages_the_more_the_stronger_they_are(train_images, held_out, damage):
    space, images = fixed_space(train_images.first(5000)), held_out.images[:1000]
    distances = [
        frechet_distance(space.moments["train"], Moments.of(space.features(damaged)))
        for damaged in (images, *(damage(images, strength) for strength in (1, 2)))
    ]
    assert 2 * distances[0] < distances[1] < 0.7 * distances[2]


def test_no_space_makes_a_float_copy_of_a_whole_set(train_images, monkeypatch):
    lengths = []

    def recorded(convert):
        return lambda tensor: lengths.append(len(tensor) if tensor.dtype == torch.uint8 else 0) or convert(tensor)

    for name in ("float", "double"):
        monkeypatch.setattr(torch.Tensor, name, recorded(getattr(torch.Tensor, name)))
    images = train_images.first(3 * BATCH_SIZE)
    for space in (*best_spaces(images), fixed_space(images), pixel_space(images)):
        space.features(images.images)
    assert max(lengths) == BATCH_SIZE


def test_images_are_picked_evenly_from_a_sorted_set_and_are_the_first_of_fashion_mnist(train_images):
    images = ImageSet(torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1))
    assert some_rows(images, 5).tolist() == [0, 20, 40, 60, 80]
    assert some_rows(images, 500).tolist() == [*range(100)]
    assert some_rows(train_images, 5).tolist() == [*range(5)]
    assert torch.cat([*some_batches(images.images, 4)]).flatten().tolist() == [0, 25, 50, 75]


def test_images_like_samples_have_their_class_counts(held_out):
    labels = torch.tensor([3] * 70 + [8] * 30)
    for order in (None, torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))):
        rows = rows_like(held_out, labels, order)
        assert torch.bincount(held_out.labels[rows]).tolist() == [0, 0, 0, 70, 0, 0, 0, 0, 30]
        assert len(rows.unique()) == 100
    assert not torch.equal(rows_like(held_out, labels), rows.sort().values)  # the order chooses


def test_other_classes_fill_the_place_of_a_class_with_too_few_images():
    images = ImageSet(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10) // 8, ("many", "few"))
    rows = rows_like(images, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert torch.bincount(images.labels[rows]).tolist() == [4, 2]
    assert rows_like(images, torch.tensor([1] * 20)).tolist() == [*range(10)]


def test_figures_of_the_second_space_have_names_of_their_own():
    assert beside([{"a": 1, "b": 2}, {"a": 3}]) == {"a": 1, "b": 2, "second_a": 3}
    assert beside([{"a": 1}]) == {"a": 1}


@pytest.fixture(scope="module")
def prepared(train_images, tmp_path_factory):
    """Coloured FashionMNIST, 600 training images and 150 held out, prepared with classes."""
    folder = tmp_path_factory.mktemp("coloured")
    arrays = {"images": in_colours(train_images.images[:750]).numpy(), "labels": train_images.labels[:750].numpy()}
    np.savez(folder / "coloured.npz", **arrays)
    return load_sets(DataConfig(source=str(folder / "coloured.npz"), root=str(folder), held_out=0.2))


def test_both_judges_of_a_set_in_colours_are_trained_kept_and_found(prepared):
    train, held_out = prepared
    assert find_judges(train) == ()
    assert [space.name for space in best_spaces(train)] == ["convolutions"]
    judges = [train_judge(kind, train, seed=0, epochs=6) for kind in JUDGES]
    for judge in judges:
        assert accuracy(judge, held_out) > 0.5
        measure(judge, "train", train)
        measure(judge, "test", held_out)
        save_judge(judge, 0.5, 0, train.folder)
    for judge, found, space in zip(judges, find_judges(train), best_spaces(train), strict=True):
        assert found.facts["test_accuracy"] == 0.5
        assert space.name == found.kind == judge.kind
        assert torch.equal(space.features(held_out.images), judge_images(judge, held_out.images)[0])
        torch.testing.assert_close(space.moments["test"].mean, space.features(held_out.images).double().mean(dim=0))
    unlabelled = ImageSet(train.images, folder=train.folder)
    assert find_judges(unlabelled) == ()
    other = ImageSet(train.images, train.labels % 7, train.class_names[:7], train.folder)
    with pytest.raises(ValueError, match=r"judge.safetensors is of 10 classes, and the set has 7; train it again"):
        find_judges(other)
    weights_file("second_judge", train.folder).unlink()
    with pytest.raises(ValueError, match=r"judge.safetensors is alone, without second_judge.safetensors; train it"):
        find_judges(train)


def test_the_judges_of_fashion_mnist_at_its_size_are_those_that_ship(train_images):
    found, shipped = find_judges(train_images), load_judges()
    assert [judge.facts for judge in found] == [judge.facts for judge in shipped]
    larger = ImageSet(train_images.images.repeat(1, 1, 2, 2), train_images.labels, train_images.class_names)
    assert find_judges(larger) == ()
