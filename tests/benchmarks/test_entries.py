import subprocess
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


FIELDS = [path for path in sorted((ROOT / "benchmarks" / "configs").glob("*.yaml")) if path.stem != "scale"]


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: path.stem)
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
        digest(fingerprint(*entry.build(seconds, seed)))
        for entry, seconds, seed in ((wide, 1, 0), (narrow, 1, 0), (wide, 2, 0), (wide, 1, 1))
    ]
    assert len(set(keys)) == 4
    config, model, scheduler = wide.build(1, 0)
    elsewhere = replace(config, output_dir="elsewhere", training=replace(config.training, log_every=7))
    assert digest(fingerprint(elsewhere, model, scheduler)) == keys[0]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a maker of commits in a repository that has the benchmarks' folders."""
    monkeypatch.setattr(entries, "ROOT", tmp_path)
    for folder in entries.CODE:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "module.py").write_text("x = 1\n", encoding="utf-8")

    def commit():
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        for words in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "--allow-empty", "-m", "change")):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)

    return commit


def code_trees():
    entries.code_trees.cache_clear()
    try:
        return entries.code_trees()
    finally:
        entries.code_trees.cache_clear()


def test_the_code_of_a_result_is_the_committed_tree(repository, tmp_path):
    assert code_trees() is None  # no repository
    repository()
    first = code_trees()
    (tmp_path / "README.md").write_text("read me\n", encoding="utf-8")
    repository()
    assert code_trees() == first is not None
    (tmp_path / "denoiser" / "module.py").write_text("x = 2\n", encoding="utf-8")
    assert code_trees() is None  # uncommitted
    repository()
    assert code_trees() not in (None, first)
    (tmp_path / "pipelines" / "new.py").write_text("x = 2\n", encoding="utf-8")
    assert code_trees() is None  # not in the repository
