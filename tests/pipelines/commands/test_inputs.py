import pickle
import zipfile

import numpy as np
import pytest
import torch

from pipelines import save_images
from pipelines.commands import inputs
from pipelines.commands.inputs import load_images


def test_a_folder_of_pictures_and_the_array_they_are_of_are_the_same_images(train_images, tmp_path):
    images = train_images.images[:1000]
    save_images(images / 255, tmp_path / "pictures")
    from_folder, labels = load_images(tmp_path / "pictures")
    assert labels is None
    assert torch.equal(from_folder, images)
    for number, array in enumerate([images, images[:, 0], images.movedim(1, -1), images / 255]):
        np.savez(tmp_path / f"{number}.npz", images=array.numpy(), labels=np.arange(1000) % 10)
        from_file, labels = load_images(tmp_path / f"{number}.npz")
        assert torch.equal(from_file, images)
        assert labels.tolist() == [*range(10)] * 100
    np.savez(tmp_path / "unnamed.npz", images.numpy())
    assert torch.equal(load_images(tmp_path / "unnamed.npz")[0], images)


GOOD = np.zeros((20, 16, 16), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((20, 28, 28), np.uint8)}, r"images of shape \(28, 28\); it must be \(1, 16, 16\)"),
        ({"images": np.zeros((20, 3, 16, 16), np.uint8)}, r"images of shape \(3, 16, 16\)"),
        ({"images": GOOD.astype(np.int64)}, "int64 images; give uint8 from 0 to 255"),
        ({"images": GOOD - 1.0}, "values from -1 to -1; floating images go from 0 to 1"),
        ({"images": GOOD * np.nan}, "values from nan to nan"),
        ({"a": GOOD, "b": GOOD}, "has the arrays a, b; call that of the images 'images'"),
        ({"images": GOOD, "labels": np.arange(19)}, r"labels of shape \(19,\)"),
        ({"images": GOOD, "labels": np.arange(20)}, "labels from 0 to 19; they go from 0 to 9"),
        (
            {"images": GOOD, "labels": np.zeros(20, int)},
            "has 0 images labelled as one class; give 100 of each of the 10",
        ),
        ({"images": np.array([{"a": 1}], dtype=object)}, "cannot be read as an .npz file"),
    ],
)
def test_arrays_that_are_not_images_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "images.npz")


def test_files_that_are_not_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a PNG file or a folder of them, nor an .npz file"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no PNG files"):
        load_images(tmp_path)
    save_images(torch.zeros(1, 3, 16, 16), tmp_path / "colour")
    with pytest.raises(ValueError, match="16x16 RGB; it must be 16x16 L"):
        load_images(tmp_path / "colour")
    (tmp_path / "0.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="0.png cannot be read as a PNG"):
        load_images(tmp_path)
    (tmp_path / "cut.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot be read as an .npz file"):
        load_images(tmp_path / "cut.npz")


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((20_000, 16, 16), np.uint8))
    assert len(load_images(tmp_path / "bomb.npz")[0]) == 20_000
    monkeypatch.setattr(inputs, "LARGEST_FILE", 1_000_000)
    with pytest.raises(ValueError, match="unpacks to 5,120,128 bytes; give at most 1,000,000"):
        load_images(tmp_path / "bomb.npz")


def test_a_pickle_in_an_archive_is_not_opened(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    with zipfile.ZipFile(tmp_path / "images.npz", "w") as archive:
        archive.writestr("images.npy", pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="cannot be read as an .npz file"):
        load_images(tmp_path / "images.npz")
    assert not (tmp_path / "opened").exists()
