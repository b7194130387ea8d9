"""Data sets of torchvision and of the library `datasets`, from small files in their real formats."""

import gzip
import hashlib
import io
import pickle
import struct
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from denoiser.data import CLASS_NAMES, DataConfig, load_fashion_mnist, load_sets
from denoiser.data.sources import find_source
from tests.conftest import DATA_ROOT
from tests.denoiser.data.files import colour

GARMENTS = load_fashion_mnist(DATA_ROOT, "test", 28)
REFUSED = "http://127.0.0.1:9/"  # the port of discard, where nothing listens

# Of the images and labels that trainings until now have seen.
SHA256 = {
    16: (
        "5f23389ac6da9cce0abd39d05a7a3885f567101cfab5060e4fc2a17038c851cb",
        "d33588c9ba9f7849f37c018547cb908640a8931930ba3f7fc978afa36f8e85f4",
    ),
    28: (
        "1f243a60b4b748a44c48b9a6f6907be2a08bee3e4e226f0e86fbde8e147b745a",
        "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e",
    ),
    32: (
        "0048e025869f6d8634903aa685d8a2e2bdef575c8790d17d15a744dae85515fe",
        "b9a9a21a1580ab96974104dd80f38ab91c9f53a1a43927d75fafe4103bdff8d6",
    ),
}


def idx(path, array):
    """Write an array in MNIST's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path.with_name(f"{path.name}.gz"), "wb") as file:
        file.write(head + array.tobytes())
    path.write_bytes(head + array.tobytes())  # torchvision looks for it unpacked


@pytest.fixture
def no_network(monkeypatch):
    """Let every mirror be one that refuses connections."""
    for kind in (torchvision_datasets.MNIST, torchvision_datasets.KMNIST):
        monkeypatch.setattr(kind, "mirrors", [REFUSED, REFUSED])
    for kind in (torchvision_datasets.EMNIST, torchvision_datasets.CIFAR10, torchvision_datasets.CIFAR100):
        monkeypatch.setattr(kind, "url", f"{REFUSED}x.zip")
    splits = {name: [f"{REFUSED}x.mat", *rest] for name, (_, *rest) in torchvision_datasets.SVHN.split_list.items()}
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", splits)


@pytest.mark.parametrize("size", [16, 28, 32])
def test_fashion_mnist_is_the_same_to_the_bit(tmp_path, size):
    config = DataConfig(root=str(tmp_path), size=size)
    (tmp_path / "FashionMNIST").symlink_to(DATA_ROOT / "FashionMNIST")
    sets = load_sets(config)
    for each, expected in zip(sets, SHA256[size], strict=True):
        content = each.images.numpy().tobytes() + each.labels.numpy().tobytes()
        assert hashlib.sha256(content).hexdigest() == each.sha256 == expected
        assert each.class_names == CLASS_NAMES


@pytest.mark.parametrize("name", ["mnist", "kmnist", "emnist"])
def test_sets_in_mnists_format_are_read(tmp_path, no_network, name):
    raw = tmp_path / name.upper() / "raw"
    prefixes = ("emnist-balanced-train", "emnist-balanced-test") if name == "emnist" else ("train", "t10k")
    count = 47 if name == "emnist" else 10
    stored = GARMENTS.images[:, 0].mT if name == "emnist" else GARMENTS.images[:, 0]
    for start, prefix in zip((0, 100), prefixes, strict=True):
        idx(raw / f"{prefix}-images-idx3-ubyte", stored[start : start + count].contiguous().numpy())
        idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    train, held_out = load_sets(DataConfig(source=name, root=str(tmp_path)))
    assert torch.equal(train.images, GARMENTS.images[:count])
    assert torch.equal(held_out.images, GARMENTS.images[100 : 100 + count])
    assert train.labels.tolist() == held_out.labels.tolist() == list(range(count))
    expected = {"mnist": ("zero", "one"), "kmnist": ("o", "ki"), "emnist": ("0", "1")}[name]
    assert train.class_names[:2] == expected
    if name == "emnist":
        assert {"A", "small a", "Z"} < set(train.class_names)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read(tmp_path, monkeypatch, no_network, name):
    kind = {"cifar10": torchvision_datasets.CIFAR10, "cifar100": torchvision_datasets.CIFAR100}[name]
    count, key = (10, "labels") if name == "cifar10" else (100, "fine_labels")
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pictures = torch.nn.functional.interpolate(GARMENTS.images[:600].view(200, 3, 28, 28), (32, 32)).numpy()

    def write(names, entry_of):
        sums = []
        for index, (file, _) in enumerate(names):
            (folder / file).write_bytes(pickle.dumps(entry_of(index)))
            sums.append([file, hashlib.md5((folder / file).read_bytes()).hexdigest()])
        return sums

    def entry(pictures):
        return {"data": pictures.reshape(len(pictures), -1), key: [index % count for index in range(len(pictures))]}

    monkeypatch.setattr(kind, "train_list", write(kind.train_list, lambda _: entry(pictures[:count])))
    monkeypatch.setattr(kind, "test_list", write(kind.test_list, lambda _: entry(pictures[100 : 100 + count])))
    names = [f"thing {index}" for index in range(count)]
    [(_, md5)] = write([(kind.meta["filename"], None)], lambda _: {kind.meta["key"]: names})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})
    train, held_out = load_sets(DataConfig(source=name, root=str(tmp_path)))
    batches = len(kind.train_list)
    assert np.array_equal(train.images.numpy(), np.concatenate([pictures[:count]] * batches))
    assert np.array_equal(held_out.images.numpy(), pictures[100 : 100 + count])
    assert train.class_names == tuple(names)
    assert train.labels.tolist() == list(range(count)) * batches
    (folder / kind.train_list[0][0]).write_bytes(b"")  # a damaged file is downloaded anew
    with pytest.raises(FileNotFoundError, match=f"{name} cannot be read from .*, nor downloaded"):
        load_sets(DataConfig(source=name, root=str(tmp_path)))


def test_svhn_is_read(tmp_path, monkeypatch):
    pictures = torch.nn.functional.interpolate(GARMENTS.images[:60].view(20, 3, 28, 28), (32, 32)).numpy()
    splits = {}
    for split, start in (("train", 0), ("test", 10)):
        path = tmp_path / f"{split}_32x32.mat"
        ours = pictures[start : start + 10]
        scipy.io.savemat(path, {"X": ours.transpose(2, 3, 1, 0), "y": np.arange(1, 11, dtype=np.uint8)[:, None]})
        splits[split] = [REFUSED, path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision_datasets.SVHN, "split_list", splits)
    train, held_out = load_sets(DataConfig(source="svhn", root=str(tmp_path)))
    assert np.array_equal(train.images.numpy(), pictures[:10])
    assert np.array_equal(held_out.images.numpy(), pictures[10:])
    assert train.labels.tolist() == [*range(1, 10), 0]
    assert train.class_names == tuple("0123456789")


@pytest.mark.parametrize("name", ["mnist", "kmnist", "emnist", "cifar10", "cifar100", "svhn"])
def test_without_a_copy_and_the_network_there_is_one_line_at_once(tmp_path, no_network, capfd, name):
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match=f"{name} cannot be read from {tmp_path}, nor downloaded") as caught:
        load_sets(DataConfig(source=name, root=str(tmp_path)))
    assert time.monotonic() - started < 10
    assert "Connection refused" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_in_mnists_format_is_one_line(tmp_path, no_network):
    raw = tmp_path / "MNIST" / "raw"
    for prefix in ("train", "t10k"):
        idx(raw / f"{prefix}-images-idx3-ubyte", GARMENTS.images[:10, 0].numpy())
        idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(10, dtype=np.uint8))
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match="mnist cannot be read from"):
        load_sets(DataConfig(source="mnist", root=str(tmp_path)))


# parquet files and the Hugging Face Hub


def png_bytes(index):
    file = io.BytesIO()
    colour(index).save(file, "png")
    return file.getvalue()


PICTURES = [np.asarray(colour(index)).transpose(2, 0, 1) for index in range(8)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def check_pictures(source):
    for index in range(len(source)):
        assert np.array_equal(source.read(index, "white").numpy(), PICTURES[index])


def marked(start, labels):
    """Return a table with the library's own kinds of columns."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    pictures = [colour(start + index) for index in range(len(labels))]
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def test_images_and_classes_as_the_library_marks_them(tmp_path):
    marked(0, [1, 0, 1, 1]).to_parquet(str(tmp_path / "x.parquet"))
    source = find_source(str(tmp_path / "x.parquet"), tmp_path)
    assert source.labels.tolist() == [1, 0, 1, 1]
    assert source.class_names == ("cat", "dog")
    check_pictures(source)


def test_a_folder_of_parquet_files_holds_its_test_split_out(tmp_path):
    (tmp_path / "x" / "data").mkdir(parents=True)
    colour(0).save(tmp_path / "x" / "example.png")
    for name, start in (("train-00000", 0), ("train-00001", 3), ("test-00000", 6)):
        marked(start, [0, 1, 0][: 8 - start]).to_parquet(str(tmp_path / "x" / "data" / f"{name}-of-00001.parquet"))
    train, held_out = load_sets(DataConfig(source=str(tmp_path / "x"), root=str(tmp_path / "root")))
    assert np.array_equal(train.images.numpy(), PICTURES[:6])
    assert np.array_equal(held_out.images.numpy(), PICTURES[6:])
    assert train.labels.tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("name", ["plain_text/test/0000", "val-00000", "Test", "data/dev_1"])
def test_a_split_is_known_by_its_file_or_folder(tmp_path, name):
    for each, start in (("plain_text/train/0000", 0), (name, 4)):
        path = tmp_path / "x" / f"{each}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        marked(start, [0, 1]).to_parquet(str(path))
    source = find_source(str(tmp_path / "x"), tmp_path)
    assert (len(source), source.held_out) == (4, 2)
    assert np.array_equal(source.read(3, "white").numpy(), PICTURES[5])


def test_a_file_that_moves_to_another_split_changes_the_source(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for index, name in enumerate(("0000", "0001")):
        marked(2 * index, [0, 1]).to_parquet(str(tmp_path / "train" / f"{name}.parquet"))
    before = find_source(str(tmp_path), tmp_path)
    (tmp_path / "train" / "0000.parquet").rename(tmp_path / "test" / "0000.parquet")  # still the first in order
    after = find_source(str(tmp_path), tmp_path)
    assert (before.held_out, after.held_out) == (0, 2)
    assert before.stamp != after.stamp


def test_a_name_with_test_in_a_word_is_no_test_split(tmp_path):
    for name in ("contest", "latest_2"):
        marked(0, [0, 1]).to_parquet(str(tmp_path / f"{name}.parquet"))
    assert find_source(str(tmp_path), tmp_path).held_out == 0


@pytest.mark.parametrize("column", ["struct", "bytes", "large"])
@pytest.mark.parametrize("labels", ["strings", "numbers", "none"])
def test_plain_columns(tmp_path, column, labels):
    contents = [png_bytes(index) for index in range(3)]
    columns = {
        "struct": pa.array([{"bytes": content, "path": None} for content in contents]),
        "bytes": pa.array(contents, pa.binary()),
        "large": pa.array(contents, pa.large_binary()),
    }
    table = {"image": columns[column], "caption": pa.array(["a", "b", "c"])}
    if labels != "none":
        table["label"] = pa.array(["dog", "cat", "dog"] if labels == "strings" else [1, 0, 1])
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    source = find_source(str(tmp_path / "x.parquet"), tmp_path)
    check_pictures(source)
    if labels == "none":
        assert source.labels is None
    else:
        assert source.labels.tolist() == [1, 0, 1]
        assert source.class_names == (("cat", "dog") if labels == "strings" else ("0", "1"))
    assert find_source(str(tmp_path / "x.parquet"), tmp_path, labels=False).labels is None


def test_a_row_without_a_picture_is_named(tmp_path):
    table = {"image": pa.array([png_bytes(0), None, b"text"], pa.binary())}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    config = DataConfig(source=str(tmp_path / "x.parquet"), root=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"2 images of .*x.parquet cannot be used: row 1 of .* cannot be read.*row 2 of"
    ):
        load_sets(config)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, 1]}, "has 0 columns of pictures, among label; give one"),
        ({"a": [b"x", b"y"], "b": [b"x", b"y"]}, "has 2 columns of pictures, among a, b; give one"),
        ({"image": [b"x", b"y"], "label": [0, 2]}, "has 2 labels up to 2; number the classes from 0"),
        ({"image": [b"x", b"y"], "label": [0.5, 1]}, "type float64; give whole numbers"),
        ({"image": [b"x", b"y"], "label": ["cat", None]}, "type object; give whole numbers"),
        ({"image": [b"x", b"y"], "label": ["cat", "Cat"]}, "two classes of the same name, Cat and cat"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message):
        find_source(str(tmp_path / "x.parquet"), tmp_path)


def test_labels_that_are_unknown_are_refused(tmp_path):
    marked(0, [1, 0, -1, None]).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(ValueError, match="has labels from -1 to 1, and 2 classes; number them from 0"):
        find_source(str(tmp_path / "x.parquet"), tmp_path)


def test_splits_of_other_columns_are_refused(tmp_path):
    marked(0, [1, 0]).to_parquet(str(tmp_path / "train.parquet"))
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="has other columns for training than for testing"):
        find_source(str(tmp_path), tmp_path)


def test_a_damaged_parquet_file_is_one_line(tmp_path, capfd):
    marked(0, [1, 0]).to_parquet(str(tmp_path / "x.parquet"))
    capfd.readouterr()
    whole = (tmp_path / "x.parquet").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(ValueError, match="x.parquet cannot be read as parquet") as caught:
            find_source(str(tmp_path / "x.parquet"), tmp_path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_name_without_a_copy_and_the_network_is_one_line_at_once(tmp_path, monkeypatch, capfd, offline):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", REFUSED.rstrip("/"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", REFUSED.rstrip("/"))
    started = time.monotonic()
    with pytest.raises(
        FileNotFoundError, match="nobody/nothing is neither a path here nor a data set that the Hugging"
    ):
        find_source("nobody/nothing", tmp_path)
    assert time.monotonic() - started < 10
    assert capfd.readouterr() == ("", "")
    assert constants.HF_HUB_OFFLINE == datasets.config.HF_HUB_OFFLINE == offline


def test_pictures_beside_parquet_files_are_not_read(tmp_path):
    marked(0, [1, 0]).to_parquet(str(tmp_path / "x.parquet"))
    Image.new("RGB", (4, 4)).save(tmp_path / "logo.png")
    assert len(find_source(str(tmp_path), tmp_path)) == 2
