"""Known damages done to real images, each of which has to move the figure that should see it."""

import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from denoiser.randomness import EVALUATION, seeded_generator
from pipelines.evaluation.comparison import CEILING, check_count, mean_and_spread, noise_images
from pipelines.evaluation.distances import DISTANCES, Moments, frechet_distance
from pipelines.evaluation.report import Reporter
from pipelines.evaluation.samples import Samples
from pipelines.evaluation.spaces import rows_like
from tests.pipelines.evaluation.conftest import noisy

COUNT = 2000


SPACES = ["judge", "second_judge", "pixels"]


@pytest.fixture(scope="module")
def figures(in_judge, in_second_judge, in_pixels, held_out):
    """Return a function from a damage to the figures of the damaged test images against the training split."""

    comparisons = dict(zip(SPACES, (in_judge, in_second_judge, in_pixels), strict=True))

    def measure(damage, space):
        comparison = comparisons[space]
        images = damage(held_out.images[:COUNT])
        return comparison.figures(comparison.space.features(images), seed=0)["train"]["samples"]

    whole = {space: measure(lambda images: images, space) for space in SPACES}
    return lambda damage, space: (measure(damage, space), whole[space])


@pytest.mark.slow
@pytest.mark.parametrize("space", SPACES)
def test_noise_moves_every_distance_the_more_the_stronger_it_is(figures, space):
    rows = [figures(lambda images, strength=strength: noisy(images, strength), space)[0] for strength in (8, 16, 32)]
    _, whole = figures(lambda images: images, space)
    for name in ("frechet",) if space == "pixels" else DISTANCES:  # principal components leave most of the noise out
        assert whole[name] < rows[0][name] < rows[1][name] < rows[2][name], name
        assert rows[2][name] > 3 * whole[name], name


DISTANCE_DAMAGES = {
    "blur": lambda images: gaussian_blur(images, [3, 3], [0.8, 0.8]),
    "shift by one pixel": lambda images: images.roll(1, dims=3),
    "contrast": lambda images: (images * 0.7).byte(),
}


@pytest.mark.parametrize("damage", DISTANCE_DAMAGES.values(), ids=DISTANCE_DAMAGES)
@pytest.mark.parametrize("space", SPACES)
def test_damaged_pixels_move_the_frechet_distance(figures, damage, space):
    damaged, whole = figures(damage, space)
    assert damaged["frechet"] > 3 * whole["frechet"]
    if (space, damage) != ("second_judge", DISTANCE_DAMAGES["shift by one pixel"]):  # which it is trained on
        assert damaged["sliced_wasserstein"] > 3 * whole["sliced_wasserstein"]


@pytest.mark.parametrize("space", SPACES)
def test_a_dropped_class_lowers_coverage_and_not_precision(figures, held_out, space):
    without = held_out.images[held_out.labels != 8]
    damaged, whole = figures(lambda images: without[:COUNT], space)
    assert damaged["coverage"] < whole["coverage"] - 0.05
    assert damaged["precision"] > whole["precision"] - 0.02
    assert damaged["frechet"] > 2 * whole["frechet"]


@pytest.mark.parametrize("space", SPACES)
def test_duplicated_images_lower_coverage(figures, space):
    damaged, whole = figures(lambda images: images[: COUNT // 4].repeat(4, 1, 1, 1), space)
    assert damaged["coverage"] < whole["coverage"] - 0.1
    assert damaged["recall"] < whole["recall"] - 0.1


@pytest.mark.parametrize("space", SPACES)
def test_a_collapse_to_a_hundred_images_leaves_nearly_no_coverage(figures, space):
    damaged, _ = figures(lambda images: images[:100].repeat(20, 1, 1, 1), space)
    assert damaged["coverage"] < 0.4
    assert damaged["recall"] < 0.4


@pytest.mark.slow
def test_shuffled_labels_leave_the_judges_agreeing_by_chance(judges, train_images, held_out):
    images, labels = held_out.images[:COUNT], held_out.labels[:COUNT]
    shuffled = labels[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))]
    reporter = Reporter(Samples([images], labels), judges, train_images, held_out, seed=0)
    right = reporter.classes()
    reporter.samples = Samples([images], shuffled)
    wrong = reporter.classes()
    for prefix in ("", "second_"):
        assert right[f"{prefix}agreement"]["mean"] > 0.9
        assert wrong[f"{prefix}agreement"]["mean"] < 0.15
        confusion = torch.tensor(right[f"{prefix}confusion"])
        assert confusion.sum() == COUNT
        assert confusion.diagonal().sum() == round(right[f"{prefix}agreement"]["mean"] * COUNT)
        assert all(
            wrong[f"{prefix}by_class"][name]["frechet"]["mean"] > 5 * row["frechet"]["mean"]
            for name, row in right[f"{prefix}by_class"].items()
        )


@pytest.mark.slow
def test_the_floor_of_ten_thousand_images_is_under_a_hundredth_of_the_ceiling(in_judge, in_second_judge, in_pixels):
    for comparison in (in_judge, in_second_judge, in_pixels):
        rows = comparison.figures(comparison.features["test"], seed=0)
        for split, columns in rows.items():
            for name in DISTANCES:
                assert abs(columns["floor"][name]) < 0.01 * columns["ceiling"][name], (
                    comparison.space.name,
                    split,
                    name,
                )
        both = (rows["train"][column]["frechet"] for column in ("samples", "floor"))  # the same test images
        assert next(both) == pytest.approx(next(both), rel=1e-6)


def test_the_floor_of_labelled_samples_has_their_class_counts(in_judge, held_out):
    labels = torch.full((2000,), 9)
    labels[:1200] = 5
    features = in_judge.features["test"][rows_like(held_out, labels)]
    rows = in_judge.figures(features, 0, labels)
    alike, at_random = (columns["train"]["floor"] for columns in (rows, in_judge.figures(features, 0)))
    assert alike["frechet"] > 10 * at_random["frechet"]  # two classes of ten
    assert rows["train"]["samples"]["frechet"] == pytest.approx(alike["frechet"], rel=0.05)


def test_equal_class_counts_lower_the_floor(in_judge, in_second_judge, held_out):
    labels = torch.arange(4000) // 400
    for comparison in (in_judge, in_second_judge):
        train = comparison.moments["train"]
        features = comparison.features["test"]
        equal = frechet_distance(train, Moments.of(features[rows_like(held_out, labels)]))
        assert equal < 0.9 * frechet_distance(train, Moments.of(features[:4000]))


def test_figures_are_a_function_of_the_seed(in_judge):
    features = in_judge.features["test"][:COUNT]
    assert in_judge.figures(features, 1) == in_judge.figures(features, 1)
    assert in_judge.figures(features, 1) != in_judge.figures(features, 2)


def test_spread_is_that_over_seeds_and_none_with_one():
    assert mean_and_spread([{"a": 1.0}, {"a": 3.0}]) == {"a": {"mean": 2.0, "spread": pytest.approx(2**0.5)}}
    assert mean_and_spread([2.0]) == {"mean": 2.0, "spread": None}
    assert mean_and_spread([2.0, 2.0 + 1e-12])["spread"] is None  # which is rounding


@pytest.mark.parametrize(
    ("count", "held_out", "message"),
    [
        (1999, 10_000, "1999 images cannot be judged; give at least 2000"),
        (10_001, 10_000, "at most 10000"),
        (3000, 2500, "at most 2500"),
    ],
)
def test_numbers_of_images_that_cannot_be_judged_are_refused(count, held_out, message):
    with pytest.raises(ValueError, match=message):
        check_count(count, held_out)


def test_any_number_of_images_can_stand_beside_few_held_out_ones():
    for count in (1, 140, 10_000):
        check_count(count, 140)


def test_noise_of_many_images_in_batches_is_that_of_one(train_images):
    pixels = train_images.images[:500].float()
    generator = seeded_generator(EVALUATION, 3, CEILING)
    expected = pixels.mean(dim=0) + pixels.std(dim=0) * torch.randn(600, 1, 16, 16, generator=generator)
    assert torch.equal(noise_images(train_images.first(500), 600, 3), expected.round().clamp(0, 255).byte())
