from dataclasses import replace

import pytest
import torch

from benchmarks.quality import floors_of, longest_of
from benchmarks.race import Training
from pipelines.evaluation.judge import frechet_to_train, load_judges
from pipelines.evaluation.spaces import rows_like


def trainings_of(entry, cache):
    return [Training.of(entry, seconds, 0, cache) for seconds in (1, 3, 2)]


def test_the_stock_pipeline_draws_with_the_longest_training(field, tmp_path):
    entry = field.entries["wide"]
    unlabelled = replace(entry, arguments=(*entry.arguments, "--model.num_class_embeds", "null"))
    assert longest_of("wide", trainings_of(unlabelled, tmp_path)).seconds == 3


def test_the_stock_pipeline_has_no_labels_to_give(field, tmp_path):
    with pytest.raises(ValueError, match="'wide' takes labels"):
        longest_of("wide", trainings_of(field.entries["wide"], tmp_path))


def test_there_is_nothing_to_draw_with_before_a_training(field, tmp_path):
    with pytest.raises(ValueError, match="no training of 'narrow' is here"):
        longest_of("narrow", trainings_of(field.entries["wide"], tmp_path))


@pytest.mark.parametrize("labelled", [True, False])
def test_the_floors_of_a_network_with_labels_have_the_class_counts_of_its_samples(field, tmp_path, held_out, labelled):
    entry = field.entries["narrow"]
    if not labelled:
        entry = replace(entry, arguments=(*entry.arguments, "--model.num_class_embeds", "null"))
    images = held_out.images[rows_like(held_out, torch.arange(200) // 20)] if labelled else held_out.images[:200]
    first, second = (frechet_to_train(judge, images) for judge in load_judges())
    floors = floors_of(load_judges(), Training.of(entry, 1, 0, tmp_path), 200)
    assert floors == pytest.approx({"frechet_floor": first, "second_frechet_floor": second})
