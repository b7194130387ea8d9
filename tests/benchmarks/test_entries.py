from dataclasses import replace

import pytest

from benchmarks import entries
from benchmarks.entries import digest, fingerprint, read_field
from tests.benchmarks.conftest import FIELD
from tests.conftest import ROOT


def test_an_entry_is_the_common_arguments_and_its_own(field):
    config, model, _ = field.entries["wide"].build(seconds=30, seed=3)
    assert tuple(model.config.block_out_channels) == (32, 64)
    assert (config.training.max_minutes, config.training.max_steps, config.training.seed) == (0.5, None, 3)
    assert field.entries["wide"].seconds == (1, 2)
    assert field.entries["narrow"].seconds == (1,)


def test_the_data_can_be_elsewhere(write_field):
    config, _, _ = read_field(write_field(), "elsewhere").entries["wide"].build(seconds=1, seed=0)
    assert config.data.root == "elsewhere"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "benchmark").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_entry_of_the_shipped_files_can_be_built(path):
    for entry in read_field(path).entries.values():
        _, model, scheduler = entry.build(seconds=1, seed=0)
        assert model.config.in_channels == 1
        assert scheduler.config.num_train_timesteps == 1000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: wide", "baseline: other", "the baseline 'other' is none of wide, narrow"),
        ("seconds: [1, 2]", "seconds: [0]", r"the seconds of 'wide' are \(0.0,\); give numbers above 0"),
        ("seconds: [1, 2]", "seconds: []", r"the seconds of 'wide' are \(\)"),
        ("ema_powers: [0.2]", "ema_powers: [1.5]", r"the ema_powers of '\w+' are \(1.5,\); each is from 0 to 1"),
        ("seconds: [1]", "", "cannot be read .*'seconds'"),
        ("seconds: [1]", "seconds: [soon]", "cannot be read .*soon"),
        ("entries:", "entries: [", "cannot be read"),
        ("baseline: wide", "baseline: [wide]", r"the name \['wide'\] is no text; give one"),
        ("  narrow:", "  64:", "the name 64 is no text; give one"),
    ],
)
def test_a_file_that_is_wrong_is_named(write_field, old, new, message):
    with pytest.raises(ValueError, match=message):
        read_field(write_field(FIELD.replace(old, new, 1)))


def test_the_fingerprint_tells_trainings_apart_and_not_where_they_are_written(field):
    wide, narrow = field.entries["wide"], field.entries["narrow"]
    keys = [
        digest(fingerprint(entry, *entry.build(seconds, seed)))
        for entry, seconds, seed in (
            (wide, 1, 0),
            (narrow, 1, 0),
            (wide, 2, 0),
            (wide, 1, 1),
            (replace(wide, ema_powers=(0.5,)), 1, 0),
        )
    ]
    assert len(set(keys)) == 5
    config, model, scheduler = wide.build(1, 0)
    elsewhere = replace(config, output_dir="elsewhere", training=replace(config.training, log_every=7))
    assert digest(fingerprint(wide, elsewhere, model, scheduler)) == keys[0]


def test_the_code_hash_sees_what_code_means_and_nothing_else(tmp_path):
    path = tmp_path / "module.py"
    meanings = []
    for text in ('"""One."""\nx = 1\n', '"""Two."""\n\nx = 1  # why\n', '"""One."""\nx = 2\n'):
        path.write_text(text, encoding="utf-8")
        meanings.append(entries._meaning(path))
    assert meanings[0] == meanings[1] != meanings[2]
