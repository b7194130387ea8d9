from functools import partial

import pytest
import torch

from pipelines import interpolated, sample_images
from pipelines.commands.sample import sample_with_all
from tests.pipelines.test_denoising import make_pipeline

SAMPLES = {
    "sampled": partial(sample_images, seed=[3, 1, 4, 1, 5], batch_size=2),
    "interpolated": partial(interpolated, seeds=[3, 17]),
}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_the_parts_of_several_processes_are_the_images_and_the_film_of_one(sample, monkeypatch):
    def in_parts_of_two(items, compute):
        return [compute(items[start : start + 2]) for start in range(0, len(items), 2)]

    sample = partial(sample, make_pipeline(), num_images=5, num_inference_steps=3, class_labels=["bag", 3])
    one, film = sample_with_all(sample, 5, film=True)
    monkeypatch.setattr("pipelines.commands.sample.share_out", in_parts_of_two)
    many, parts = sample_with_all(sample, 5, film=True)
    assert torch.equal(one, many)
    assert torch.equal(one, sample())
    assert film.keys() == parts.keys() == {"sample", "clean"}
    for name, stages in film.items():
        assert stages.shape == (5, 3, 1, 16, 16)
        assert torch.equal(stages, parts[name])
    assert torch.equal(film["sample"][:, -1].div(2).add(0.5).clamp(0, 1), one)
    assert sample_with_all(sample, 5, film=False)[1] == {}
