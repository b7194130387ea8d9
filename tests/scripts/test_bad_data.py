"""Image sets that cannot be used: each is one line, with exit status 2, and leaves no set."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from pipelines.commands import prepare, train
from tests.conftest import DATA_ROOT


def picture(path, size=(16, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 5 if mode == "L" else (90, 10, len(path.stem))).save(path)
    return path


@pytest.fixture
def sources(tmp_path):
    """Make a source of each kind, and return their folder."""
    folder = tmp_path / "sources"
    (folder / "empty").mkdir(parents=True)
    for name in ("a", "bb", "ccc"):
        for kind in ("cut", "text", "mixed", "classes/cat", "classes/dog", "twins/cat", "twins/Cat", "split/train"):
            picture(folder / kind / f"{name}.png")
    cut = folder / "cut" / "a.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (folder / "text" / "bb.png").write_text("no picture", encoding="utf-8")
    picture(folder / "mixed" / "dddd.png", (20, 16))
    picture(folder / "split" / "test" / "e.png")
    picture(folder / "beside" / "a.png")
    picture(folder / "beside" / "cat" / "a.png")
    (folder / "hole" / "cat").mkdir(parents=True)
    picture(folder / "hole" / "dog" / "a.png")
    picture(folder / "hole" / "cow" / "a.png")
    (folder / "loop" / "down").mkdir(parents=True)
    (folder / "loop" / "down" / "up").symlink_to(folder / "loop")
    (folder / "pictures.zip").write_bytes(b"PK, or so it says")
    (folder / "notes.txt").write_text("what I want to draw", encoding="utf-8")
    images = np.zeros((6, 16, 16), dtype=np.uint8)
    np.savez(folder / "skips.npz", images=images, labels=np.array([0, 1, 3, 0, 1, 3]))
    np.savez(folder / "short.npz", images=images, labels=np.array([0, 1]))
    np.save(folder / "bright.npy", images + 300.0)
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object))
    with zipfile.ZipFile(folder / "unlabelled.zip", "w") as archive:
        archive.write(folder / "mixed" / "a.png", "a.png")
        archive.write(folder / "mixed" / "bb.png", "bb.png")
        archive.writestr("dataset.json", json.dumps({"labels": [["a.png", 0]]}))
    return folder


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "nowhere is neither a folder, nor a file, nor a data set"),
        ("minst", "(did you mean 'mnist'?)"),
        ("~nobody_here/x", "~nobody_here/x is neither a folder, nor a file, nor a data set"),
        ("{}/empty", "empty has no images"),
        ("{}/loop", "loop has no images"),
        ("{}/notes.txt", "notes.txt has no suffix among .zip, .npz, .npy, .parquet"),
        ("{}/cut", "1 image of"),
        ("{}/text", "bb.png cannot be read"),
        ("{}/mixed", "give --data.size"),
        ("{}/twins", "two classes of the same name, Cat and cat"),
        ("{}/hole", "has no picture in cat"),
        ("{}/beside", "has pictures beside folders of pictures"),
        ("{}/split", "--data.held_out"),
        ("{}/pictures.zip", "cannot be read"),
        ("{}/unlabelled.zip", "dataset.json"),
        ("{}/skips.npz", "without gaps"),
        ("{}/short.npz", "labels of shape (2,) for 6 images"),
        ("{}/bright.npy", "values from 300 to 300"),
        ("{}/objects.npy", "cannot be read"),
        ("{}/classes --data.size 4", "size is 4; it must be from 8 to 256"),
        ("{}/classes --data.channels 2", "--data.channels"),
        ("{}/classes --data.held_out 1.5", "held_out is 1.5"),
        ("{}/classes --data.held_out {}/mixed --data.size 16", "has classes; give both of a kind"),
        ("{}/classes --data.limit 0", "limit is 0"),
        ("{}/classes --data.fit squeeze", "data.fit"),
    ],
)
@pytest.mark.parametrize("command", [prepare, train], ids=["prepare", "train"])
def test_a_set_that_cannot_be_used(command, given, message, sources, error_of, tmp_path):
    options = ["--data.root", tmp_path / "sets", "--data.source", *given.replace("{}", str(sources)).split()]
    if command is train:
        options += ["--output_dir", tmp_path / "run", "--tracking.mode", "disabled"]
    assert message in error_of(command, *options)
    assert not list((tmp_path / "sets").glob("[!.]*"))
    assert not (tmp_path / "run").exists()


def test_a_data_set_of_the_hub_without_a_copy(error_of, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    error = error_of(prepare, "--data.source", "nobody/nothing", "--data.root", tmp_path / "sets")
    assert "nobody/nothing is neither a path here nor a data set that the Hugging Face Hub gives" in error


def test_more_images_in_a_step_than_in_the_set(sources, error_of, tmp_path):
    places = ["--data.root", tmp_path / "sets", "--output_dir", tmp_path / "run", "--tracking.mode", "disabled"]
    error = error_of(train, "--data.source", sources / "classes", *places)
    assert "images to train on, fewer than the 128 of a step; lower training.batch_size" in error


@pytest.mark.parametrize("what", ["images.npy", "set.json"])
def test_a_prepared_set_that_was_altered(what, sources, error_of, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["prepare", "--data.source", str(sources / "classes"), "--data.root", str(tmp_path)]
    )
    prepare.main()
    capsys.readouterr()
    (made,) = tmp_path.glob("classes-*")
    content = bytearray((made / what).read_bytes())
    content[-20] ^= 1
    (made / what).write_bytes(content)
    assert "is not as it was prepared" in error_of(prepare, "--data.source", made, "--data.root", DATA_ROOT)
