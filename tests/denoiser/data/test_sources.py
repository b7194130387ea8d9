"""Folders, zip files and arrays as sources, right and wrong ones."""

import json
import os
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from denoiser.data import DataConfig, load_sets
from denoiser.data.sources import find_source
from tests.denoiser.data.files import GARMENTS, LABELS, colour, make_folder, make_zip


def find(source, labels=True, root="nowhere"):
    return find_source(str(source), root, labels)


def relative(source, folder):
    return [name.removeprefix(f"{folder}/") for name in source.names]


# folders


def test_a_flat_folder_has_no_classes(tmp_path):
    source = find(make_folder(tmp_path / "x", {"": 3}))
    assert (len(source), source.labels, source.class_names) == (3, None, ())
    assert np.array_equal(source.read(1, "white").permute(1, 2, 0).numpy(), np.asarray(colour(1)))


def test_sub_folders_are_classes_however_deep_their_pictures_lie(tmp_path):
    folder = make_folder(tmp_path / "x", {"dog": 1, "cat/a": 2, "cat/b/c": 1})
    source = find(folder)
    assert source.class_names == ("cat", "dog")
    assert relative(source, folder) == ["cat/a/0000.png", "cat/a/0001.png", "cat/b/c/0000.png", "dog/0000.png"]
    assert source.labels.tolist() == [0, 0, 0, 1]
    without = find(folder, labels=False)
    assert (without.labels, without.class_names, without.names) == (None, (), source.names)


def test_a_single_sub_folder_is_no_class(tmp_path):
    assert find(make_folder(tmp_path / "x", {"images/all": 3})).labels is None


def test_classes_may_lie_in_a_single_sub_folder(tmp_path):
    folder = make_folder(tmp_path / "x", {"images/cat": 1, "images/dog": 1})
    assert find(folder).class_names == ("cat", "dog")
    assert find(make_zip(tmp_path / "x.zip", folder)).class_names == ("cat", "dog")


def test_numbers_in_names_are_sorted_as_numbers(tmp_path):
    source = find(make_folder(tmp_path / "x", {"10": 1, "9": 1, "0": 1}))
    assert source.class_names == ("0", "9", "10")
    assert source.labels.tolist() == [0, 2, 1]


def test_names_of_equal_numbers_have_one_order(tmp_path):
    names = ["0" * zeros + "1" for zeros in range(6)]  # a set of strings has another order in each process
    assert find(make_folder(tmp_path / "x", dict.fromkeys(names, 1))).class_names == tuple(sorted(names))


def test_pictures_beside_folders_of_pictures_are_refused(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 1, "cat": 1, "dog": 1})
    with pytest.raises(ValueError, match="x has pictures beside folders of pictures; give each class a folder"):
        find(folder)
    assert len(find(folder, labels=False)) == 3


@pytest.mark.parametrize("counts", [{"cat": 1, "dog": 1, "bird": 0}, {"cat": 2, "bird": 0}])
def test_a_class_without_an_image_is_refused(tmp_path, counts):
    folder = make_folder(tmp_path / "x", counts)
    for source in (folder, make_zip(tmp_path / "x.zip", folder)):
        with pytest.raises(ValueError, match="has no picture in bird; remove that folder, or leave the classes out"):
            find(source)
        assert len(find(source, labels=False)) == 2


def test_two_classes_of_one_name_are_refused(tmp_path):
    folder = make_folder(tmp_path / "x", {"cat": 1, "Cat": 1, "dog": 1})
    with pytest.raises(ValueError, match="x has two classes of the same name, Cat and cat; rename one"):
        find(folder)


def test_hidden_files_and_folders_and_others_are_left_out(tmp_path):
    folder = make_folder(tmp_path / "x", {"cat": 1, "dog": 1, ".cache": 1, "__MACOSX": 1, "cat/.thumbnails": 1})
    colour(0).save(folder / "cat" / "._0000.png")
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "readme.txt").write_text("x", encoding="utf-8")
    for source in (folder, make_zip(tmp_path / "x.zip", folder)):
        assert relative(find(source), source) == ["cat/0000.png", "dog/0000.png"]


def test_suffixes_are_found_in_any_case(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 1})
    for name in ("a.JPG", "b.Jpeg", "c.WEBP", "d.Gif", "e.BMP", "f.TIF", "g.tiff"):
        colour(3).save(folder / name)
    assert len(find(folder)) == 8


def test_links_are_followed_and_circles_are_not(tmp_path):
    make_folder(tmp_path / "elsewhere", {"more": 2})
    folder = make_folder(tmp_path / "x", {"cat": 1, "dog": 1})
    (folder / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (folder / "dog" / "one.png").symlink_to(tmp_path / "elsewhere" / "more" / "0000.png")
    (folder / "cat" / "up").symlink_to("..")
    (folder / "dog" / "self").symlink_to(".")
    (folder / "dog" / "cats").symlink_to("../cat")
    expected = {
        *("cat/0000.png", "cat/more/0000.png", "cat/more/0001.png", "dog/0000.png", "dog/one.png"),
        *("dog/cats/0000.png", "dog/cats/more/0000.png", "dog/cats/more/0001.png"),
    }
    assert set(relative(find(folder), folder)) == expected


def test_a_broken_link_and_what_is_no_file_are_named(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 1})
    (folder / "broken.png").symlink_to("nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    source = find(folder)
    for name, message in (("broken", "No such file"), ("circle", "Too many levels"), ("pipe", "it is no file")):
        with pytest.raises(ValueError, match=f"cannot be read .*{message}"):
            source.read(source.names.index(str(folder / f"{name}.png")), "white")


def test_an_unpacked_zip_of_edms_tools_has_its_labels(tmp_path):
    folder = make_folder(tmp_path / "x", {"00000": 2, "00001": 1})
    labels = [["00000/0000.png", 1], ["00000/0001.png", 0], ["00001/0000.png", 1]]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    assert find(folder).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("name", ["x", "x.zip"])
def test_a_source_without_a_picture_is_refused(tmp_path, name):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("x", encoding="utf-8")
    make_zip(tmp_path / "inner.zip", make_folder(tmp_path / "pictures", {"": 1}))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "inner.zip", "inner.zip")  # a zip in a zip is no picture
    with pytest.raises(ValueError, match=f"{name} has no images; give a source with some"):
        find(tmp_path / name)


def test_a_name_that_is_no_set_is_refused(tmp_path):
    for name, message in (
        ("fashion_mnits", r"neither a folder, nor a file, nor a data set \(did you mean 'fashion_mnist'\?\); give one"),
        (
            "nowhere",
            "neither a folder, nor a file, nor a data set; give one of fashion_mnist, .*, or a path; the folder of a "
            "prepared set is a source too$",
        ),
        ("~nobody/x/y", "neither a folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            find(name)
    (tmp_path / "x.rar").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"x.rar has no suffix among .zip, .npz, .npy, .parquet"):
        find(tmp_path / "x.rar")


# zip files


def test_a_zip_without_labels_has_its_folders_as_classes(tmp_path):
    source = find(make_zip(tmp_path / "x.ZIP", make_folder(tmp_path / "x", {"cat": 1, "dog": 2})))
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 1]
    assert np.array_equal(source.read(2, "white").permute(1, 2, 0).numpy(), np.asarray(colour(2)))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_labels_may_lie_in_the_folder_that_holds_all_pictures(tmp_path, kind):
    folder = make_folder(tmp_path / "x", {"faces/a": 2, "faces/b": 1})
    labels = [["a/0000.png", 1], ["a/0001.png", 0], ["b/0000.png", 1]]
    (folder / "faces" / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    source = find(folder if kind == "folder" else make_zip(tmp_path / "x.zip", folder))
    assert source.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("inner", ["", "faces/"])
def test_splits_are_no_classes(tmp_path, inner):
    folder = make_folder(tmp_path / "x", {f"{inner}{name}/cat": 1 for name in ("Train", "valid", "TEST")})
    place = f"{folder}/{inner}"
    with pytest.raises(ValueError, match="x has splits for folders, not classes") as caught:
        find(folder)
    assert str(caught.value).endswith(f"; give --data.source {place}Train --data.held_out {place}TEST")
    with pytest.raises(ValueError, match="; unpack it, and give --data.source"):
        find(make_zip(tmp_path / "x.zip", folder))
    assert len(find(folder, labels=False)) == 3
    assert find(make_folder(tmp_path / "y", {"train": 1, "bus": 1})).class_names == ("bus", "train")
    assert find(make_folder(tmp_path / "z", {"test": 1, "val": 1})).class_names == ("test", "val")


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_zip_of_edms_tools_has_its_labels(tmp_path, separator):
    folder = make_folder(tmp_path / "x", {"00000": 2, "00001": 2})
    labels = [[f"0000{index // 2}{separator}000{index % 2}.png", label] for index, label in enumerate([1, 0, 2, 1])]
    source = find(make_zip(tmp_path / "x.zip", folder, labels))
    assert source.class_names == ("0", "1", "2")
    assert source.labels.tolist() == [1, 0, 2, 1]


def test_backslashes_in_a_zip_are_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for index, name in enumerate(["cat", "dog"]):
            colour(index).save(tmp_path / "x.png")
            entry = zipfile.ZipInfo("x")
            entry.filename = f"{name}\\x.png"  # as a tool of Windows writes it
            archive.writestr(entry, (tmp_path / "x.png").read_bytes())
    source = find(tmp_path / "x.zip")
    assert source.class_names == ("cat", "dog")
    assert source.read(1, "white").shape == (3, 16, 16)


def test_labels_that_are_null_mean_no_classes(tmp_path):
    folder = make_folder(tmp_path / "x", {"00000": 2, "00001": 1})
    assert find(make_zip(tmp_path / "x.zip", folder, described='{"labels": null}')).labels is None


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ('{"labels": [["0000.png", 0]]}', "x.zip: dataset.json has no label for 0001.png; give each picture one, or"),
        (
            '{"labels": [["0000.png", 0], ["0001.png", 2], ["0002.png", 2]]}',
            "x.zip has no image of the class 1; number",
        ),
        ('{"labels": [["0000.png", 0], ["0001.png", 9], ["0002.png", 1]]}', "has 3 labels up to 9; number the classes"),
        ('{"labels": [["0000.png", 0], ["0001.png", -1], ["0002.png", 1]]}', "has labels from -1 to 1"),
        ('{"labels": [["0000.png", 0], ["0001.png", null], ["0002.png", 1]]}', "type object; give whole numbers"),
        ('{"labels": [["0000.png", 0], ["0001.png", 0.5], ["0002.png", 1]]}', "type float64; give whole numbers"),
        ('{"labels": [["0000.png", [1]], ["0001.png", [0]], ["0002.png", [1]]]}', r"shape \(3, 1\)"),
        ('{"labels": [["0000.png", [1]], ["0001.png", 0], ["0002.png", 1]]}', "x.zip: dataset.json cannot be read"),
        ('{"labels": 3}', "x.zip: dataset.json cannot be read"),
        ('{"labels": [["0000.png"]]}', "x.zip: dataset.json cannot be read"),
        ("[1]", "x.zip: dataset.json cannot be read"),
        ('{"label": []}', r'x.zip: dataset.json cannot be read \(it has no "labels"; give'),
        ("{", "x.zip: dataset.json cannot be read"),
        ("[" * 100_000, "x.zip: dataset.json cannot be read"),
    ],
)
def test_wrong_labels_are_refused_in_one_line(tmp_path, described, message):
    path = make_zip(tmp_path / "x.zip", make_folder(tmp_path / "x", {"": 3}), described=described)
    with pytest.raises(ValueError, match=message) as caught:
        find(path)
    assert "\n" not in str(caught.value)
    assert len(find(path, labels=False)) == 3


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_damaged_zip_is_refused(tmp_path, damage):
    path = make_zip(tmp_path / "x.zip", make_folder(tmp_path / "x", {"": 3}))
    content = {"truncated": path.read_bytes()[:-100], "text": b"not a zip", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="x.zip cannot be read as a zip file"):
        find(path)


def test_a_damaged_picture_in_a_zip_is_named(tmp_path):
    path = make_zip(tmp_path / "x.zip", make_folder(tmp_path / "x", {"": 3}))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 30] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read \(Bad CRC-32 for file '0000.png'\)"):
        find(path).read(0, "white")


def test_an_encrypted_zip_is_told(tmp_path):
    path = make_zip(tmp_path / "x.zip", make_folder(tmp_path / "x", {"": 2}))
    content = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(magic, start + 1)) >= 0:
            content[start + place] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read .*encrypted, password required"):
        find(path).read(0, "white")


def test_a_picture_that_unpacks_to_too_much_is_refused(tmp_path):
    path = make_zip(tmp_path / "x.zip", make_folder(tmp_path / "x", {"": 1}))
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02") + 24
    content[start : start + 4] = struct.pack("<I", 1 << 30)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is a file of 1,073,741,824 bytes; give at most 268,435,456"):
        find(path).read(0, "white")


# arrays


@pytest.mark.parametrize("name", ["labels", "label"])
def test_arrays_with_labels(tmp_path, name):
    np.savez(tmp_path / "x.npz", images=GARMENTS[:50], **{name: LABELS[:50].astype(np.uint8)})
    source = find(tmp_path / "x.npz")
    assert source.labels.tolist() == LABELS[:50].tolist()
    assert source.class_names == tuple("0123456789")
    assert np.array_equal(source.read(7, "white")[0].numpy(), GARMENTS[7])
    assert find(tmp_path / "x.npz", labels=False).labels is None


@pytest.mark.parametrize("name", ["arr_0", "images", "pictures"])
def test_arrays_without_labels(tmp_path, name):
    np.savez_compressed(tmp_path / "x.npz", **{name: GARMENTS[:5] / 255})
    source = find(tmp_path / "x.npz")
    assert source.labels is None
    assert np.array_equal(source.read(4, "white")[0].numpy(), GARMENTS[4])


@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_any_number_of_channels_is_trained_on(tmp_path, channels):
    images = GARMENTS[: 20 * channels].reshape(20, channels, 16, 16)
    np.save(tmp_path / "x.npy", images)
    train, held_out = load_sets(DataConfig(source=str(tmp_path / "x.npy"), root=str(tmp_path), held_out=0.25))
    seen = torch.cat([train.images, held_out.images]).numpy()
    assert seen.shape == images.shape
    assert {image.tobytes() for image in seen} == {image.tobytes() for image in images}
    smaller, _ = load_sets(DataConfig(source=str(tmp_path / "x.npy"), root=str(tmp_path), size=(8, 12)))
    assert smaller.images.shape[1:] == (channels, 8, 12)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GARMENTS[:3], "labels": np.array([0, 1])}, r"x.npz has labels of shape \(2,\) for 3 images"),
        ({"images": GARMENTS[:3], "labels": np.array([0, 2, 2])}, "x.npz has no image of the class 1"),
        ({"images": GARMENTS[:3], "labels": np.array([0.0, 1, 1])}, "type float64; give whole numbers"),
        ({"images": GARMENTS[:3], "labels": np.array([0, 2**62, 1])}, "has 3 labels up to 4,611,686,018,427,387,904"),
        ({"images": GARMENTS[:3], "labels": np.array(["a", "b", "a"])}, "give whole numbers"),
        ({"a": GARMENTS[:3], "b": GARMENTS[:3]}, "x.npz has the arrays a, b; call that of the images 'images'"),
        ({"images": GARMENTS[:3], "masks": GARMENTS[:3]}, "x.npz has the arrays images, masks; call"),
        (
            {"images": GARMENTS[:3], "label": LABELS[:3], "labels": LABELS[:3]},
            "x.npz has the arrays images, label; call",
        ),
        ({"labels": LABELS[:3]}, "x.npz has the arrays none"),
        ({"images": np.array([{}, 1], dtype=object)}, "x.npz cannot be read as arrays .*allow_pickle"),
        ({"images": GARMENTS[:3].astype(np.int32)}, "x.npz has int32 images"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        find(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_files_that_are_no_arrays_are_refused(tmp_path, name):
    np.savez(tmp_path / "x.npz", images=GARMENTS[:3])
    np.save(tmp_path / "x.npy", GARMENTS[:3])
    whole = (tmp_path / name).read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as arrays"):
            find(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(ValueError, match="it holds files that are not arrays"):
        find(tmp_path / "x.npz")


def test_an_object_array_is_never_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="x.npy cannot be read as arrays"):
        find(tmp_path / "x.npy")


def test_the_picture_files_read_are_those_of_the_folder_and_of_any_mode(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 2}, size=(20, 30))
    colour(0).convert("L").save(folder / "grey.png")
    colour(1).convert("CMYK").save(folder / "print.jpg")
    Image.new("RGBA", (9, 9)).save(folder / "clear.png")
    train, _ = load_sets(DataConfig(source=str(folder), root=str(tmp_path / "root"), size=16, held_out=0))
    assert train.images.shape == (5, 3, 16, 16)
    assert (train.images[2] == 255).all()  # clear.png, after the two of numbers
