"""The command that prepares image sets: what it prints, the contact sheet, and its errors."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from denoiser.data import DataConfig, ImageSet, load_sets, open_set, prepare
from pipelines.commands import prepare as script
from tests.conftest import another_process
from tests.denoiser.data.files import GARMENTS, LABELS, make_folder


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run the command in an empty folder. Returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        another_process()
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def error_of(call, capsys):
    """Run the command. Returns its one line of error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            call(*arguments)
        assert ended.value.code == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "preparing:" not in line]
        return line

    return run


def test_what_is_in_the_set_is_told(call, tmp_path):
    folder = make_folder(tmp_path / "pets", {"cat": 30, "dog": 70}, size=(20, 16))
    (folder / "dog" / "bad.png").write_bytes(b"x")
    out = call("--data.source", folder, "--data.size", "[16,24]", "--data.unreadable", "skip")
    [prepared] = (tmp_path / "data").glob("pets-*")
    train, held_out = open_set(prepared)
    counts = [[int((each.labels == label).sum()) for each in (train, held_out)] for label in (0, 1)]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for expected in (
        f"folder: data/{prepared.name}",
        "images: 90 to train on, 10 held out (0.1 of all, by hash)",
        "shape: 24x16, 3 channels",
        "original sizes: 16x20 (100)",
        "unreadable: 1, skipped",
        "class to train on held out",
        f"cat {counts[0][0]} {counts[0][1]}",
        f"dog {counts[1][0]} {counts[1][1]}",
        f"contact sheet: data/{prepared.name}/contact_sheet.png",
    ):
        assert expected in lines
    images = np.load(prepared / "images.npy")
    assert "mean: " + ", ".join(f"{mean:.1f}" for mean in images.mean(axis=(0, 2, 3))) in lines
    assert "deviation: " + ", ".join(f"{value:.1f}" for value in images.std(axis=(0, 2, 3))) in lines
    assert any("bad.png cannot be read as a picture" in line for line in lines)


def test_images_that_are_left_out_are_counted(call, tmp_path):
    make_folder(tmp_path / "pets", {"": 10})
    make_folder(tmp_path / "others", {"": 3})
    lines = call("--data.source", "pets", "--data.held_out", "others").splitlines()
    assert "left out:       3, which equal a held-out image" in lines
    assert "images:         7 to train on, 3 held out (those of others)" in lines
    assert not any("left out" in line for line in call("--data.source", "pets").splitlines())


def test_the_classes_of_a_prepared_set_are_left_out_if_so_asked(call, tmp_path):
    make_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    assert "cat" in call("--data.source", "pets")
    [prepared] = (tmp_path / "data").glob("pets-*")
    assert "cat" not in call("--data.source", prepared, "--data.labels", "false")


def test_a_set_with_its_contact_sheet_is_whole_and_a_source(call, tmp_path):
    np.savez(tmp_path / "x.npz", images=GARMENTS[:200], labels=LABELS[:200])
    first = call("--data.source", tmp_path / "x.npz")
    [prepared] = (tmp_path / "data").glob("x-*")
    with Image.open(prepared / "contact_sheet.png") as sheet:
        assert sheet.size > (640, 640)
    assert call("--data.source", f"data/{prepared.name}") == first
    assert prepare(DataConfig(source=str(tmp_path / "x.npz"))).resolve() == prepared


def test_the_options_are_those_of_a_training(call, tmp_path):
    """The set that a training's `data` section asks for is the prepared one."""
    np.save(tmp_path / "x.npy", GARMENTS[:50])
    call(
        "--data.source", "x.npy", "--data.root", "sets", "--data.size", 8, "--data.channels", 3, "--data.held_out", 0.2
    )
    config = DataConfig(source="x.npy", root="sets", size=8, channels=3, held_out=0.2)
    train, held_out = load_sets(config, on_progress=lambda done, total: pytest.fail("prepared anew"))
    assert (len(train), len(held_out)) == (40, 10)


def test_the_contact_sheet_has_ten_of_each_class():
    images = torch.full((25, 1, 16, 16), 255, dtype=torch.uint8)
    images[20:] = 0
    labels = torch.tensor([0] * 20 + [2] * 5)
    sheet = np.asarray(script.contact_sheet(ImageSet(images, labels, ("white", "none", "black"))).convert("L"))
    rows = [68 // 2, 68 + 68 // 2]  # of images of 64 and a margin
    assert sheet.shape[0] == 2 * 66 + 2
    assert [(sheet[rows[0]] == level).sum() >= 10 * 64 for level in (255, 0)] == [True, False]
    assert 5 * 64 <= (sheet[rows[1]] == 0).sum() < 6 * 64


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_contact_sheet_without_classes_has_a_hundred(channels):
    images = torch.zeros(1000, channels, 16, 8, dtype=torch.uint8)
    sheet = script.contact_sheet(ImageSet(images))
    width = 8 * (4 if channels == 4 else 1)
    assert sheet.size == (10 * (width * 4 + 2) + 2, 10 * (16 * 4 + 2) + 2)


def test_a_set_where_nothing_can_be_written_is_described(call, tmp_path, caplog, monkeypatch):
    np.save(tmp_path / "x.npy", GARMENTS[:50])
    first = call("--data.source", "x.npy")
    [prepared] = (tmp_path / "data").glob("x-*")

    def refuse(image, path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(script, "save_image", refuse)
    assert call("--data.source", prepared) == first.replace("data/", f"{tmp_path}/data/").split("\ncontact")[0]
    assert "writing the contact sheet failed ([Errno 30] Read-only file system); going on" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.source nowhere", "nowhere is neither a folder, nor a file, nor a data set; give one of"),
        ("--data.source empty", "empty has no images; give a source with some"),
        ("--data.source cifar_10", "(did you mean 'cifar10'?)"),
        ("--data.source bad", "1 image of bad cannot be used: bad/b.png cannot be read as a picture"),
        ("--data.source mixed", "mixed has pictures beside folders of pictures"),
        ("--data.source pets --data.root file/x", "file/x"),
        ("--data.source pets --data.size 7", "size is 7; it must be from 8 to 256"),
        ("--data.source pets --data.size 16.5", "data.size: expected int or tuple"),
        ("--data.source pets --data.held_out 1.5", "held_out is 1.5"),
        ("--data.source pets --data.held_out nowhere", "nowhere is neither"),
        ("--data.source pets --data.channels 4", "has images of 3 channels, not 4"),
        ("--data.source pets --data.fit squeeze", "expected 'crop', 'pad', 'stretch', got squeeze"),
        ("--data.sauce pets", "unknown option 'data.sauce' (did you mean 'data.source'?)"),
        ("--data.source ''", "source is empty"),
    ],
)
def test_errors_are_one_line(error_of, tmp_path, arguments, message):
    make_folder(tmp_path / "pets", {"cat": 2, "dog": 2})
    make_folder(tmp_path / "mixed", {"": 1, "dog": 2})
    make_folder(tmp_path / "bad", {"": 1})
    (tmp_path / "bad" / "b.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    line = error_of(*[word.replace("''", "") for word in arguments.split()])
    assert line.startswith("prepare_data.py: error: ")
    assert message in line
    assert not list(tmp_path.rglob("set.json"))
