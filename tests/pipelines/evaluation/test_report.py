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
