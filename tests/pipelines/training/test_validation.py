"""Evaluation during training, on sets with a classifier and without, with many held-out images and with one."""

import pytest
import torch
from diffusers import DDPMScheduler

from denoiser.data import ImageSet
from pipelines import DenoisingPipeline, SamplingConfig
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET, Moments, frechet_distance
from pipelines.evaluation.judge import frechet_to_train, load_judges
from pipelines.evaluation.markdown import render_validation
from pipelines.evaluation.spaces import fixed_space, rows_like
from pipelines.training.metrics import Validation
from tests.conftest import tiny_unet
from tests.pipelines.evaluation.conftest import in_colours

SAMPLING = SamplingConfig(steps=1)


@pytest.fixture
def pipeline():
    pipeline = DenoisingPipeline(tiny_unet(in_channels=3, out_channels=3, num_class_embeds=None), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def coloured(train_images):
    """Two parts of a set in colours and without classes."""
    return ImageSet(in_colours(train_images.images[:400])), ImageSet(in_colours(train_images.images[400:550]))


def test_the_floors_of_fashion_mnist_are_those_of_the_first_test_images(train_images, held_out):
    validation = Validation(held_out, SAMPLING, 200, train_images)
    assert [space.name for space in validation.spaces] == ["judge", "second_judge"]
    expected = [frechet_to_train(judge, held_out.images[:200]) for judge in load_judges()]
    assert validation.floors == pytest.approx(expected, rel=1e-9)


def test_the_floors_of_a_network_with_classes_have_the_class_counts_of_its_samples(train_images, held_out):
    validation = Validation(held_out, SAMPLING, 200, train_images, num_classes=10)
    images = held_out.images[rows_like(held_out, torch.arange(200) // 20)]
    expected = [frechet_to_train(judge, images) for judge in load_judges()]
    assert validation.floors == pytest.approx(expected, rel=1e-9)
    assert torch.equal(validation.held_out.images, held_out.images[:200])  # of the loss


def test_figures_and_card_have_both_judges(train_images, held_out):
    pipeline = DenoisingPipeline(tiny_unet(sample_size=16, num_class_embeds=None), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    figures = Validation(held_out, SAMPLING, 100, train_images).frechet_distance(pipeline)
    assert (figures["frechet_space"], figures["second_frechet_space"]) == ("judge", "second_judge")
    for prefix in ("", "second_"):
        assert figures[f"{prefix}frechet"] > 5 * figures[f"{prefix}frechet_floor"]
    assert figures["frechet"] != figures["second_frechet"]
    first, second = render_validation(figures).splitlines()[2:]
    assert "Fréchet distance of 100 images to training images, in the first judge's features" in first
    assert "Fréchet distance of 100 images to training images, in the second judge's features" in second


def test_a_set_without_a_classifier_is_measured_in_fixed_convolutions(coloured, pipeline, caplog):
    train, held_out = coloured
    validation = Validation(held_out, SAMPLING, 150, train)
    assert caplog.messages == []
    figures = validation.frechet_distance(pipeline)
    assert figures["frechet_space"] == "convolutions"
    (floor,) = validation.floors
    assert figures["frechet"] > figures["frechet_floor"] == floor
    assert "second_frechet" not in figures
    space = fixed_space(train)
    expected = frechet_distance(Moments.of(space.features(train.images)), Moments.of(space.features(held_out.images)))
    assert floor == pytest.approx(expected, rel=1e-4)
    page = render_validation(figures)
    assert "Fréchet distance of 150 images to training images, in the features of fixed convolutions" in page


def test_with_fewer_held_out_images_than_asked_for_all_are_used_and_one_line_says_so(coloured, pipeline, caplog):
    train, held_out = coloured
    validation = Validation(held_out, SAMPLING, 2048, train)
    assert caplog.messages == [
        "evaluations are of 150 images, all that are held out, and not of evaluation_images 2048"
    ]
    assert validation.frechet_distance(pipeline)["evaluation_images"] == 150


@pytest.mark.parametrize("count", [1, FEWEST_FOR_FRECHET - 1])
def test_too_few_held_out_images_have_a_loss_and_no_distance(coloured, pipeline, caplog, count):
    train, held_out = coloured
    validation = Validation(held_out.first(count), SAMPLING, 2048, train)
    assert len(caplog.messages) == 1
    assert f"it needs 100 images held out and as many to train on, and there are {count} and 400" in caplog.text
    assert validation.frechet_distance(pipeline) == {"evaluation_images": count}
    losses = validation.held_out_loss(pipeline, DDPMScheduler())
    assert 0 < losses["held_out_loss"] < 100


def test_the_loss_of_many_batches_is_that_of_one(coloured, pipeline, monkeypatch):
    train, held_out = coloured
    validation = Validation(held_out, SAMPLING, 150, train)
    one = validation.held_out_loss(pipeline, DDPMScheduler())
    monkeypatch.setattr("pipelines.training.metrics.VALIDATION_BATCH_SIZE", 40)
    many = validation.held_out_loss(pipeline, DDPMScheduler())
    assert many == pytest.approx(one, rel=1e-5)


def test_held_out_images_are_picked_from_all_of_a_sorted_set(train_images):
    labels, order = train_images.labels[:2000].sort()
    train = ImageSet(in_colours(train_images.images[order]), labels, tuple(map(str, range(10))))
    validation = Validation(train, SAMPLING, 100, train)
    assert torch.bincount(validation.held_out.labels, minlength=10).min() > 5
