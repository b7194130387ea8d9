import pytest

from denoiser.files import atomic_path


def test_a_file_and_a_folder_come_whole_and_replace_what_was_there(tmp_path):
    for text in ("old", "new"):
        with atomic_path(tmp_path / "deep" / "file.txt") as temporary:
            temporary.write_text(text, encoding="utf-8")
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / f"{text}.txt").write_text(text, encoding="utf-8")
    assert (tmp_path / "deep" / "file.txt").read_text(encoding="utf-8") == "new"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["new.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "folder"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "keep.txt").write_text("kept", encoding="utf-8")

    def write_over():
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.write_text("a file", encoding="utf-8")

    with pytest.raises(OSError, match="folder"):
        write_over()
    assert (tmp_path / "folder" / "keep.txt").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("as_folder", [False, True])
def test_after_a_failure_the_old_one_stands_and_nothing_else(tmp_path, as_folder):
    with atomic_path(tmp_path / "file.txt") as temporary:
        temporary.write_text("old", encoding="utf-8")

    def fail():
        with atomic_path(tmp_path / "file.txt") as temporary:
            temporary.mkdir() if as_folder else temporary.write_text("half", encoding="utf-8")
            raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        fail()
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == ["old"]
