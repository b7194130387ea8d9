import gzip
import hashlib
import shutil
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FashionMNIST
from torchvision.transforms import Resize

from denoiser.data import CLASS_NAMES, fashion_mnist, load_fashion_mnist
from tests.conftest import DATA_ROOT

FILES = [f"t10k-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture
def no_other_source(tmp_path, monkeypatch):
    """Leave only the data root: no Debian package, and a mirror on this machine that serves an empty folder."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "no_debian")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=mirror)) as server:
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        Thread(target=server.serve_forever, daemon=True).start()
        yield mirror
        server.shutdown()


def source(name):
    """Return the real compressed file of the test split, from wherever this machine has it."""
    return fashion_mnist._find(DATA_ROOT, name)


def put_files(folder, compressed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if compressed:
            shutil.copy(source(name), folder / f"{name}.gz")
        else:
            (folder / name).write_bytes(gzip.decompress(source(name).read_bytes()))


def test_both_splits_are_whole_and_balanced():
    for split, count in (("train", 60_000), ("test", 10_000)):
        images = load_fashion_mnist(DATA_ROOT, split)
        assert images.images.shape == (count, 1, 16, 16)
        assert images.labels.bincount().tolist() == [count // 10] * 10
        assert images.class_names == CLASS_NAMES


def test_no_test_image_is_in_the_train_split(train_images):
    train = {image.numpy().tobytes() for image in load_fashion_mnist(DATA_ROOT, "train", 28).images}
    test = [image.numpy().tobytes() for image in load_fashion_mnist(DATA_ROOT, "test", 28).images]
    assert not train.intersection(test)


def test_images_are_resized_as_torchvision_resizes_pictures():
    full, small = load_fashion_mnist(DATA_ROOT, "test", 28), load_fashion_mnist(DATA_ROOT, "test", 16)
    resize = Resize(16, antialias=True)
    for index in range(50):
        expected = np.asarray(resize(Image.fromarray(full.images[index, 0].numpy())), dtype=int)
        assert abs(expected - small.images[index, 0].numpy()).max() <= 1  # one grey level of rounding


def test_a_batch_is_in_minus_one_to_one(train_images):
    everything, _ = train_images.batch(torch.arange(len(train_images)))
    assert (everything.min(), everything.max()) == (-1, 1)
    images, labels = train_images.batch(torch.tensor([5, 0, 5]))
    assert images.dtype == torch.float32
    assert torch.equal(images[0], images[2])
    assert labels.tolist() == [train_images.labels[5], train_images.labels[0], train_images.labels[5]]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw"])
def test_files_in_the_data_root_are_used(tmp_path, no_other_source, compressed, layout):
    put_files(tmp_path / "root" / layout, compressed)
    images = load_fashion_mnist(tmp_path / "root", "test")
    assert torch.equal(images.images, load_fashion_mnist(DATA_ROOT, "test").images)


def test_the_debian_package_is_used(tmp_path, no_other_source, monkeypatch):
    put_files(tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    assert len(load_fashion_mnist(tmp_path / "root", "test")) == 10_000


def test_torchvisions_mirror_is_used_and_the_download_kept(tmp_path, no_other_source, monkeypatch):
    put_files(no_other_source)
    sums = [(f"{name}.gz", hashlib.md5(source(name).read_bytes()).hexdigest()) for name in FILES]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    assert len(load_fashion_mnist(tmp_path / "root", "test")) == 10_000
    kept = sorted(path.name for path in (tmp_path / "root" / "FashionMNIST" / "raw").iterdir())
    assert kept == sorted(f"{name}.gz" for name in FILES)


def test_a_missing_file_is_named_with_its_hash_and_the_three_ways(tmp_path, no_other_source):
    with pytest.raises(FileNotFoundError) as caught:
        load_fashion_mnist(tmp_path / "root", "test")
    for part in (FILES[0], fashion_mnist.SHA256[FILES[0]], "root", "dataset-fashion-mnist", "download"):
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "altered", "not gzip"])
def test_a_corrupt_file_is_named_with_the_hash_expected(tmp_path, no_other_source, damage):
    put_files(tmp_path / "root")
    path = tmp_path / "root" / f"{FILES[0]}.gz"
    content = path.read_bytes()
    changed = {
        "truncated": content[: len(content) // 2],
        "altered": gzip.compress(gzip.decompress(content)[:-1] + b"\x07", compresslevel=1),
        "not gzip": b"<html>not here</html>",
    }
    path.write_bytes(changed[damage])
    with pytest.raises(ValueError, match=f"{FILES[0]}.*corrupt.*{fashion_mnist.SHA256[FILES[0]]}"):
        load_fashion_mnist(tmp_path / "root", "test")


def test_nothing_is_written_into_the_root(tmp_path, no_other_source):
    put_files(tmp_path / "root")
    before = sorted((tmp_path / "root").rglob("*"))
    load_fashion_mnist(tmp_path / "root", "test")
    assert sorted((tmp_path / "root").rglob("*")) == before


def test_sizes_and_splits_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="split is 'valid'"):
        load_fashion_mnist(DATA_ROOT, "valid")
    with pytest.raises(ValueError, match="height is 0"):
        load_fashion_mnist(DATA_ROOT, "test", 0)


def test_an_archive_of_far_too_much_is_not_unpacked(tmp_path, no_other_source):
    put_files(tmp_path / "root")
    with gzip.open(tmp_path / "root" / f"{FILES[0]}.gz", "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(bytes(10**6))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"{FILES[0]}.*corrupt"):
            load_fashion_mnist(tmp_path / "root", "test")
        assert tracemalloc.get_traced_memory()[1] < 5 * fashion_mnist.BYTES[FILES[0]]
    finally:
        tracemalloc.stop()
