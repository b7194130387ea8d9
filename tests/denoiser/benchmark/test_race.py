import pytest

from denoiser.benchmark.entries import Entry
from denoiser.benchmark.race import PIPELINE, Training, race
from denoiser.benchmark.tables import train_plot, train_rows, train_table
from pipelines import load_pipeline


def trainings_of(field, cache):
    return [Training.of(entry, 1, 0, cache) for entry in field.entries.values()]


def test_a_race_trains_judges_and_keeps_every_entry_and_pays_for_none_twice(field, tmp_path):
    trainings = trainings_of(field, tmp_path)
    turns = []
    race(trainings, turns.append)
    assert sum(turns) >= 2
    rows = train_rows(trainings)
    for training, row in zip(trainings, rows, strict=True):
        assert row["steps"] > 0
        assert 1 <= training.result["seconds"] < 5
        assert training.result["images"] == 32 * row["steps"]
        assert 0 < row["share_of_peak"] < 1
        assert row["frechet"] > row["frechet_floor"]
        assert load_pipeline(training.folder / PIPELINE).unet.num_parameters() == row["parameters"]
    page = train_table(rows, field.baseline)
    assert "| wide |" in page
    assert "| narrow |" in page
    assert train_plot(rows).size[0] > 100

    race(trainings_of(field, tmp_path), lambda seconds: pytest.fail("it was trained again"))


def test_an_entry_that_cannot_be_trained_ends_the_race_with_one_line(field, tmp_path, capfd):
    wide = field.entries["wide"]
    broken = Entry("broken", (*wide.arguments, "--training.evaluation_images", "1"), (1.0,))
    with pytest.raises(ValueError, match="could not be trained; its own message stands above"):
        race([Training.of(broken, 1, 0, tmp_path)])
    assert "evaluation_images is 1; it must be from 100" in capfd.readouterr().err
