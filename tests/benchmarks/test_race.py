from dataclasses import replace

import pytest

from benchmarks import race as race_module
from benchmarks.entries import Entry, read_field
from benchmarks.race import PIPELINE, Training, race
from benchmarks.tables import train_rows, train_table
from pipelines import load_pipeline
from tests.conftest import ROOT


def trainings_of(field, cache):
    return [Training.of(entry, 1, 0, cache) for entry in field.entries.values()]


def test_a_race_trains_judges_and_keeps_every_entry_and_pays_for_none_twice(field, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.race.TURN", 0.4)
    trainings = trainings_of(field, tmp_path)
    turns, order, send = [], [], race_module._send
    monkeypatch.setattr(race_module, "_send", lambda one, *rest: order.append(one.entry.name) or send(one, *rest))
    race(trainings, turns.append)
    assert order[:4] == ["wide", "narrow", "wide", "narrow"]
    assert len(turns) >= 4
    assert sum(turns) == pytest.approx(sum(training.result["seconds"] for training in trainings))
    rows = train_rows(trainings)
    for training, row in zip(trainings, rows, strict=True):
        assert row["steps"] > 0
        assert 1 <= training.result["seconds"] < 5
        assert training.result["images"] == 32 * row["steps"]
        assert 0 < row["share_of_peak"] < 1
        assert row["frechet"] > row["frechet_floor"]
        assert row["second_frechet"] > row["second_frechet_floor"]
        assert load_pipeline(training.folder / PIPELINE).unet.num_parameters() == row["parameters"]
    page = train_table(rows, field.baseline)
    assert "| wide |" in page
    assert "| narrow |" in page

    race(trainings_of(field, tmp_path), lambda seconds: pytest.fail("it was trained again"))


def test_an_entry_that_cannot_be_trained_ends_the_race_with_one_line(field, tmp_path, capfd):
    wide = field.entries["wide"]
    broken = Entry("broken", (*wide.arguments, "--training.evaluation_images", "1"), (1.0,))
    with pytest.raises(ValueError, match="'broken' could not be trained for 1 s: its process ended; what it said"):
        race([Training.of(broken, 1, 0, tmp_path / "cache")])
    assert "evaluation_images is 1; it must be from 100" in capfd.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_code_that_changes_while_a_race_is_set_up_ends_it(field, tmp_path):
    training = Training.of(field.entries["narrow"], 1, 0, tmp_path)
    with pytest.raises(ValueError, match="was changed while the race was set up"):
        race([replace(training, folder=tmp_path / "another digest")])


def test_a_network_that_takes_labels_can_be_described():
    entry = read_field(ROOT / "benchmarks" / "configs" / "labelled.yaml").entries["UNet2DModel"]
    assert Training.of(entry, 1, 0, ROOT).facts["operations"] > 1e8


def test_images_that_the_judge_cannot_see_are_refused(field, tmp_path):
    narrow = field.entries["narrow"]
    larger = Entry("larger", (*narrow.arguments, "--data.size", "null", "--model.sample_size", "32"), (1.0,))
    with pytest.raises(ValueError, match=r"images of \(1, 32, 32\).*the judges see \(1, 16, 16\)"):
        Training.of(larger, 1, 0, tmp_path)
