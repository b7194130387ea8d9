from dataclasses import replace

import pytest

from benchmarks.quality import longest_of
from benchmarks.race import Training


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
