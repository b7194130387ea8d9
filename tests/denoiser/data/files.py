"""Small files of real pictures, for the tests of image sets."""

import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from denoiser.data import load_fashion_mnist
from tests.conftest import DATA_ROOT

TEST_SET = load_fashion_mnist(DATA_ROOT, "test", 16)
GARMENTS = TEST_SET.images[:, 0].numpy()
LABELS = TEST_SET.labels.numpy()


def colour(index, size=(16, 16)):
    """Return a picture in colour, height and width: a garment in each channel."""
    picture = Image.fromarray(np.stack([GARMENTS[index], GARMENTS[index + 1], GARMENTS[index + 2]], axis=-1))
    return picture if size == (16, 16) else picture.resize(size[::-1])


def make_folder(folder, counts, size=(16, 16)):
    """Make a folder of pictures: `counts` of sub-folders by name, "" for the folder itself."""
    start = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            colour(start + index, size).save(folder / name / f"{index:04d}.png")
        start += count
    return folder


def make_zip(path, folder, labels=None, described=None):
    """Pack a folder into a zip file, with `dataset.json` of labels by name if they are given."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(Path(folder).rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
        if described is not None or labels is not None:
            archive.writestr("dataset.json", described or json.dumps({"labels": labels}))
    return path


def tree(folder):
    """Return the bytes of all files below a folder by their names."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
