import torch

from pipelines.evaluation.likelihood import Bound
from pipelines.evaluation.markdown import render
from pipelines.evaluation.report import Reporter, make_report
from pipelines.evaluation.samples import Samples


def test_a_report_of_the_likelihood_alone_needs_no_samples(judge, train_images, held_out):
    zeros, timesteps = torch.zeros(4, dtype=torch.float64), torch.full((4, 2), 7)
    terms = torch.ones(4, 2, dtype=torch.float64)
    bound = Bound(zeros, zeros + 2, terms, timesteps, 1000, "fixed_small", given_labels=True)
    report = make_report(Reporter(Samples([], bound=bound), judge, train_images, held_out, seed=0), ["likelihood"])
    assert report.keys() == {"judge", "likelihood"}
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


def test_a_class_with_too_few_images_has_an_empty_cell(judge):
    share = {"mean": 0.5, "spread": None}
    rows = {"cat": {"agreement": share}, "dog": {"agreement": share, "frechet": share, "floor": share}}
    section = {"by_class": rows, "agreement": share, "agreement_floor": [None, 0.75]}
    page = render({"classes": section}, speeds={})
    assert "| cat |  |  | 0.5 |  |" in page
    assert "| dog | 0.5 | 0.5 | 0.5 | 0.75 |" in page
    assert "Classes of fewer than 100 images have none." in page
