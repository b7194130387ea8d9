import pytest
import torch

from pipelines.evaluation.likelihood import Bound
from pipelines.evaluation.markdown import render
from pipelines.evaluation.plots import plot_report
from pipelines.evaluation.report import Reporter, make_report
from pipelines.evaluation.samples import Samples
from pipelines.evaluation.spaces import beside
from tests.pipelines.evaluation.conftest import noisy


def test_a_report_of_the_likelihood_alone_needs_no_samples(judges, train_images, held_out):
    zeros, timesteps = torch.zeros(4, dtype=torch.float64), torch.full((4, 2), 7)
    terms = torch.ones(4, 2, dtype=torch.float64)
    bound = Bound(zeros, zeros + 2, terms, timesteps, 1000, "fixed_small", given_labels=True)
    report = make_report(Reporter(Samples([], bound=bound), judges, train_images, held_out, seed=0), ["likelihood"])
    assert report.keys() == {"judge", "second_judge", "likelihood"}
    assert report["likelihood"]["bits_per_dimension"] == 3
    page = render(report, speeds={})
    assert "**3.000 ± 0.000 bits per dimension**" in page
    assert "given their labels" in page


def test_the_page_says_when_inceptions_weights_are_not_those_of_papers():
    row = {"samples": [2.0, 4.0], "floor": 1.0}
    section = {"images": 50, "floor_images": 40, "training_images": 60, "distances": {"clean-fid": row}}
    page = render({"inception": {**section, "weights": "6726825dff"}}, speeds={})
    assert "begins with 6726825d. " in page
    assert "| clean-fid: Pillow's bicubic resizing | 3 ± 1.414 | 1 |" in page
    assert "begins with 0123, not 6726825d" in render({"inception": {**section, "weights": "0123"}}, speeds={})


def test_a_class_with_too_few_images_has_an_empty_cell():
    share = {"mean": 0.5, "spread": None}
    rows = {"cat": {"agreement": share}, "dog": {"agreement": share, "frechet": share, "floor": share}}
    section = {"by_class": rows, "agreement": share, "agreement_floor": [None, 0.75]}
    page = render({"classes": section}, speeds={})
    assert "| cat |  |  | 0.5 |  |" in page
    assert "| dog | 0.5 | 0.5 | 0.5 | 0.75 |" in page
    page = render({"classes": beside([section, section])}, speeds={})
    assert "| dog | 0.5 | 0.5 | 0.5 | 0.75 | 0.5 | 0.5 | 0.5 | 0.75 |" in page
    assert "the first judge agrees with 0.5 and the second with 0.5 of the images" in page
    assert "Classes of fewer than 100 images have none." in page


def test_tables_have_the_figures_of_both_judges_side_by_side(judges, train_images, held_out):
    images = held_out.images[:200]
    by_sampler = {("ddim", 5): images, ("ddim", 10): noisy(images, 20)}
    network_calls = {("ddim", 5): 5, ("ddim", 10): 10}
    samples = Samples([images], by_guidance={1.0: images[:100]}, by_sampler=by_sampler, calls_by_sampler=network_calls)
    reporter = Reporter(samples, judges, train_images.first(500), held_out.first(500), seed=0)
    report = make_report(reporter, ["guidance", "samplers"])
    figures = {"frechet", "recall", "second_frechet", "second_recall"}
    for row in report["samplers"]:
        assert figures <= row.keys()
    for row in report["guidance"]:
        assert figures | {"agreement", "second_agreement"} <= row.keys()
    first, second, _ = report["samplers"]
    assert first["frechet"] < second["frechet"]
    assert first["second_frechet"] < second["second_frechet"]
    page = render(report, dict.fromkeys(by_sampler, 1.0))
    assert "| Fréchet distance | recall | Fréchet distance, second judge | recall, second judge | images/s |" in page
    assert "| judge agrees | recall | Fréchet distance | judge agrees, second judge |" in page
    by_one = make_report(Reporter(samples, judges[:1], reporter.train, reporter.test, seed=0), ["samplers"])
    one, both = (plot_report(each, samples, train_images)["samplers"] for each in (by_one, report))
    assert both.width == 2 * one.width  # a panel for each


@pytest.mark.slow
def test_a_classifier_learns_less_from_samples_with_wrong_labels(train_images, held_out, monkeypatch):
    monkeypatch.setattr("pipelines.evaluation.judge.LEAST_STEPS", 256)
    some, seen = train_images.first(400), held_out.first(500)
    wrong = some.labels.clone()
    wrong[::2] = (wrong[::2] + 1) % 10
    sections = [
        Reporter(Samples([some.images], labels), (), some, seen, seed=0).usefulness() for labels in (some.labels, wrong)
    ]
    right, mislabelled = sections
    assert right["images"] == 400
    assert right["held_out"] == 500
    assert right["samples"] == right["real"] > 0.6  # the samples are the training images
    assert mislabelled["samples"] < right["samples"] - 0.1
    page = render({"usefulness": right}, speeds={})
    assert "| a classifier trained only on | accuracy on 500 held-out images |" in page
    assert "| 400 real training images |" in page
