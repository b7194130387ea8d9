"""Names of the Hub's repositories; tests/scripts/test_hub.py pushes and downloads."""

import pytest

from pipelines import find_pipeline
from pipelines.hub import is_repository
from pipelines.training.card import card_files


@pytest.mark.parametrize("name", ["user/first", "an-organization/a_name-2.0", "runs/first"])
def test_a_repository_is_a_user_and_a_name(name):
    assert is_repository(name)


@pytest.mark.parametrize(
    "name",
    ["", "first", "/first", "user/", "./first", "../first", "~/first", "a/b/c", "a//b", "a/b--c", "a/b.git", "a/b c"],
)
def test_other_paths_are_none(name):
    assert not is_repository(name)


def test_a_folder_is_taken_before_a_repository_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"runs/first is not a saved pipeline: it has no model_index\.json"):
        find_pipeline("runs/first")


def test_a_pipeline_without_a_card_has_no_files_of_one(tmp_path):
    assert card_files(tmp_path, "user/first") == {}
