"""Prepared sets: their form, their splits and settings, and what an altered one is met with."""

import json
import shutil

import numpy as np
import pytest
import torch

from denoiser.data import DataConfig, load_sets, open_set, prepare
from denoiser.data.form import read_facts, write_facts
from denoiser.data.sources import find_source
from denoiser.data.split import lowest_hashes
from tests.conftest import DATA_ROOT
from tests.denoiser.data.files import GARMENTS, LABELS, colour, make_folder, make_zip, tree


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(source, **options):
    return load_sets(DataConfig(source=str(source), root="root", **options))


def contents(images):
    return [image.numpy().tobytes() for image in images.images]


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "x", {"cat": 20, "dog": 30})


def arrays(path, count=1000):
    np.savez(path, images=GARMENTS[:count], labels=LABELS[:count])
    return path


# form


def test_a_set_is_read_with_numpy_alone(folder):
    prepared = prepare(DataConfig(source=str(folder), root="root"))
    images, labels = np.load(prepared / "images.npy"), np.load(prepared / "labels.npy")
    facts = json.loads((prepared / "set.json").read_text(encoding="utf-8"))
    assert (images.dtype, images.shape, labels.dtype, labels.shape) == (np.uint8, (50, 3, 16, 16), np.int64, (50,))
    assert facts["class_names"] == ["cat", "dog"]
    expected = {np.asarray(colour(index)).transpose(2, 0, 1).tobytes(): int(index >= 20) for index in range(50)}
    assert {image.tobytes(): label for image, label in zip(images, labels, strict=True)} == expected
    train, held_out = open_set(prepared)
    assert np.array_equal(images, torch.cat([train.images, held_out.images]))
    assert np.array_equal(labels, torch.cat([train.labels, held_out.labels]))
    assert train.folder == held_out.folder == prepared
    assert facts["held_out"]["images"] == len(held_out) == 5
    assert np.allclose(facts["mean"], images.mean(axis=(0, 2, 3)), atol=1e-3)
    assert np.allclose(facts["standard_deviation"], images.std(axis=(0, 2, 3)), atol=1e-3)
    assert facts["sizes_before"] == {"16x16": 50}
    assert sorted(path.name for path in prepared.iterdir()) == ["images.npy", "labels.npy", "set.json"]


def test_a_set_is_prepared_once(folder):
    told = []
    config = DataConfig(source=str(folder), root="root")
    prepared = prepare(config, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (50, 50)
    before = tree(prepared)
    assert prepare(config, on_progress=lambda done, total: pytest.fail("prepared twice")) == prepared
    assert tree(prepared) == before


def test_greys_alone_make_a_grey_set_and_one_colour_a_coloured_one(tmp_path):
    folder = make_folder(tmp_path / "x", {})
    folder.mkdir()
    for index in range(4):
        picture = colour(index).convert("L")
        (picture.convert("RGB") if index % 2 else picture).save(folder / f"{index}.png")
    train, _ = load(folder, held_out=0)
    assert train.images.shape == (4, 1, 16, 16)
    assert np.array_equal(train.images[1, 0], np.asarray(colour(1).convert("L")))
    colour(4).save(folder / "4.png")
    assert load(folder, held_out=0)[0].images.shape == (5, 3, 16, 16)


def test_channels_and_sizes_are_as_asked(folder):
    train, _ = load(folder, size=(8, 24), channels=1)
    assert train.images.shape == (45, 1, 8, 24)
    train, _ = load(folder, size=(24, 8), channels=1)
    assert train.images.shape == (45, 1, 24, 8)
    with pytest.raises(ValueError, match="x has images of 3 channels, not 4, .*; give --data.channels 3$"):
        load(folder, channels=4)


def test_pictures_of_several_sizes_need_one(folder):
    colour(0, (24, 20)).save(folder / "dog" / "large.png")
    with pytest.raises(ValueError, match=r"x has images of 16x16 and of 20x24 \(.*large.png\); give --data.size"):
        load(folder)
    assert len(load(folder, size=16)[0]) == 46
    with pytest.raises(ValueError, match="x has images of 16x16 and of 20x24; give --data.size"):  # of that set too
        load(folder)


def test_a_set_is_the_same_with_its_own_size_named(tmp_path, folder):
    train, _ = load(folder)
    assert load(folder, size=16)[0].folder == train.folder


@pytest.mark.parametrize("size", [(300, 300), (4, 4)])
def test_own_sizes_have_limits(tmp_path, size):
    folder = make_folder(tmp_path / "x", {"": 2}, size)
    with pytest.raises(ValueError, match=f"x has images of {size[1]}x{size[0]}; give --data.size, 8 to 256"):
        load(folder)


# splits


def test_the_share_is_exact_and_the_sides_apart(tmp_path):
    train, held_out = load(arrays(tmp_path / "x.npz"), held_out=0.123)
    assert (len(train), len(held_out)) == (877, 123)
    assert not set(contents(train)) & set(contents(held_out))
    assert held_out.labels.bincount(minlength=10).min() > 0


@pytest.mark.parametrize("share", [0, 0.0])
def test_nothing_is_held_out_if_so_asked(tmp_path, share):
    train, held_out = load(arrays(tmp_path / "x.npz", 50), held_out=share)
    assert (len(train), held_out) == (50, None)
    assert load("x.npz", held_out=0)[0].folder == load("x.npz", held_out=0.0)[0].folder


def test_equal_images_are_on_one_side(tmp_path):
    np.save(tmp_path / "x.npy", np.concatenate([GARMENTS[:40]] * 3))
    train, held_out = load("x.npy")
    assert not set(contents(train)) & set(contents(held_out))
    assert (len(train) + len(held_out), len(held_out)) == (120, 12)
    np.save(tmp_path / "x.npy", np.stack([GARMENTS[0]] * 30))
    train, held_out = load("x.npy")
    assert (len(train), held_out) == (30, None)


def test_a_set_that_grows_keeps_its_sides(tmp_path):
    before = load(arrays(tmp_path / "x.npz", 1000))
    after = load(arrays(tmp_path / "x.npz", 1100))
    kept = set(contents(before[1])) & set(contents(after[1]))
    assert len(kept) > 85
    assert not len(set(contents(before[0])) & set(contents(after[1]))) > 15


def test_the_split_depends_on_neither_order_nor_cores(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "x", {"": 300})
    sets = load(folder)
    monkeypatch.setattr("denoiser.data.preparation.num_cores", lambda: 1)
    again = load_sets(DataConfig(source=str(folder), root="other"))
    for one, other in zip(sets, again, strict=True):
        assert one.sha256 == other.sha256
    for index, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        path.rename(folder / f"new-{index:04d}.png")
    for one, other in zip(sets, load(folder), strict=True):
        assert set(contents(one)) == set(contents(other))


@pytest.mark.parametrize("grey", [False, True])
def test_the_split_does_not_depend_on_the_form(tmp_path, grey):
    pictures = tmp_path / "x"
    pictures.mkdir()
    for index in range(40):
        picture = colour(index, (20, 24))
        (picture.convert("L") if grey else picture).save(pictures / f"{index:04d}.png")
    labels = [[f"{index:04d}.png", index % 4] for index in range(40)]
    (pictures / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    forms = [
        {"size": 16, "channels": 1},
        {"size": 32, "channels": 3, "in_memory": False},
        {"size": (8, 24), "fit": "pad", "background": "black"},
        {"fit": "stretch", "channels": 1, "in_memory": True},
    ]
    kept = {}
    for index, form in enumerate(forms):
        for source in find_source(str(pictures), tmp_path).names:  # each picture, as this form prepares it
            alone = tmp_path / f"alone-{index}" / source[-8:-4]
            alone.mkdir(parents=True)
            shutil.copy(source, alone)
            kept[index, contents(load(alone, held_out=0, **form)[0])[0]] = source
        _, held_out = load(pictures, held_out=0.25, **form)
        assert len(held_out) == 10
        kept[index] = {kept[index, image] for image in contents(held_out)}
        assert kept[index] == kept[0]


def test_a_grey_picture_is_held_out_with_its_copy_in_colour(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 10})
    for index in range(10):
        picture = colour(index).convert("L")
        picture.save(folder / f"{index:04d}.png")
        picture.convert("RGB").save(folder / f"{index:04d}-copy.png")
    train, held_out = load(folder, held_out=0.2)
    assert (len(held_out), set(contents(train)) & set(contents(held_out))) == (4, set())


@pytest.mark.parametrize(
    ("copies", "share", "expected"),
    [
        ([1, 1, 8], 0.5, {1, 2, 8, 9}),
        ([9, 1], 0.9, {1, 9}),
        ([9, 1], 0.01, {0}),
        ([10], 0.9, {0}),
        ([2] * 5, 0.99, {8}),
        ([2] * 5, 0.25, {2}),
        ([1] * 10, 0.99, {9}),
    ],
)
def test_the_number_nearest_to_the_share_is_held_out(copies, share, expected):
    for seed in range(20):
        hashes = np.random.default_rng(seed).permutation(len(copies)).astype(np.uint64)
        digests = np.repeat(hashes, copies)
        held_out = lowest_hashes(digests, None, share)
        possible = np.cumsum([0, *(copies[index] for index in np.argsort(hashes))])[:-1]
        assert held_out.sum() in expected
        assert abs(held_out.sum() - share * len(digests)) == min(abs(possible - share * len(digests)))
        assert not set(digests[held_out]) & set(digests[~held_out])


def test_a_class_is_not_held_out_as_a_whole():
    digests, labels = np.arange(20, dtype=np.uint64), np.repeat([1, 2, 0], [1, 2, 17])
    assert np.flatnonzero(lowest_hashes(digests, labels, 0.25)).tolist() == [3, 4]
    digests[4] = digests[0]  # an equal image of another class stays beside it
    assert np.flatnonzero(lowest_hashes(digests, labels, 0.25)).tolist() == [3]
    assert lowest_hashes(digests, None, 0.25).sum() == 5


def test_a_small_class_is_trained_on(tmp_path):
    folder = make_folder(tmp_path / "x", {"cat": 1, "dog": 1, "bird": 8})
    for share in (0.5, 0.8, 0.99):
        train, _ = load(folder, held_out=share)
        assert train.labels.bincount(minlength=3).min() > 0


def test_training_images_that_are_held_out_elsewhere_are_left_out(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 20}, (20, 24))
    others = tmp_path / "y"
    others.mkdir()
    for index in (3, 4, 100):
        colour(index, (20, 24)).save(others / f"{index}.png")
    train, held_out = load(folder, held_out=str(others), size=16)
    assert (len(train), len(held_out)) == (18, 3)
    assert not set(contents(train)) & set(contents(held_out))
    facts, images = read_facts(train.folder), np.load(train.folder / "images.npy")
    assert (facts["left_out"], facts["images"], facts["sizes_before"]) == (2, 21, {"24x20": 21})
    assert np.allclose(facts["mean"], images.mean(axis=(0, 2, 3)), atol=1e-3)
    with pytest.raises(ValueError, match="y has no images to train on that .*x does not have; give a source with some"):
        load(others, held_out=str(make_folder(tmp_path / "x", {"": 101}, (20, 24))))
    assert not list((tmp_path / "root").glob(".*.parts"))


def test_another_source_is_held_out(tmp_path, folder):
    others = make_zip(tmp_path / "y.zip", make_folder(tmp_path / "y", {"dog": 3, "cat": 2}))
    train, held_out = load(folder, held_out=str(others))
    assert (len(train), len(held_out)) == (45, 5)
    assert train.labels.tolist() == [0] * 15 + [1] * 30
    assert held_out.labels.tolist() == [0, 0, 1, 1, 1]
    assert np.array_equal(held_out.images[2].permute(1, 2, 0), np.asarray(colour(0)))  # the first dog
    assert read_facts(train.folder)["held_out"]["rule"] == f"those of {others}"
    assert load(folder, held_out="./y.zip")[0].folder == train.folder
    one_class = make_folder(tmp_path / "z", {"dog": 1, "bird": 1})
    with pytest.raises(ValueError, match="z has the class bird, which .*x does not have"):
        load(folder, held_out=str(one_class))
    with pytest.raises(ValueError, match="only one of .* has classes; give both of a kind"):
        load(folder, held_out=str(make_folder(tmp_path / "flat", {"": 2})))
    with pytest.raises(ValueError, match="held_out is .* prepared already; give the source that it was made of"):
        load(folder, held_out=str(train.folder))
    with pytest.raises(FileNotFoundError, match="nowhere is neither a folder"):
        load(folder, held_out="nowhere")


def test_a_share_of_a_set_with_a_test_split_is_told(tmp_path, caplog):
    options = {"source": "fashion_mnist", "size": 8, "limit": 100}
    prepare(DataConfig(root=str(DATA_ROOT), **options))
    assert not caplog.records
    prepare(DataConfig(root=str(DATA_ROOT), held_out=0.2, **options))
    assert "fashion_mnist has 10,000 held-out images of its own, of which some are trained on now" in caplog.text


def test_a_limit_picks_evenly(tmp_path):
    train, _ = load(arrays(tmp_path / "x.npz", 100), limit=10, held_out=0)
    assert np.array_equal(train.images[:, 0], GARMENTS[:100:10])
    assert train.labels.tolist() == LABELS[:100:10].tolist()
    assert len(load("x.npz", limit=1000, held_out=0)[0]) == 100
    assert len(load("x.npz", limit=1)[0]) == 1


@pytest.mark.parametrize(("limit", "expected"), [(1, (1, 1)), (2, (1, 1)), (11, (10, 1)), (51, (48, 3)), (53, (50, 3))])
def test_a_limit_picks_from_both_sides(tmp_path, limit, expected):
    others = tmp_path / "y.npz"
    np.savez(others, images=np.stack([np.asarray(colour(index)) for index in (100, 101, 102)]), labels=[0, 0, 1])
    np.savez("x.npz", images=np.stack([np.asarray(colour(index)) for index in range(50)]), labels=np.arange(50) % 2)
    train, held_out = load("x.npz", held_out=str(others), limit=limit)
    assert (len(train), len(held_out)) == expected


def test_without_labels_there_are_no_classes(folder):
    train, held_out = load(folder, labels=False)
    assert (train.labels, train.class_names, held_out.labels) == (None, (), None)
    assert not (train.folder / "labels.npy").exists()


# a source that changes


@pytest.mark.parametrize("change", ["added", "removed", "altered"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_source_that_changed_is_prepared_anew(tmp_path, folder, change, packed):
    source = tmp_path / "x.zip" if packed else folder
    make_zip(tmp_path / "x.zip", folder)
    first = set(contents(load(source, held_out=0)[0]))
    path = folder / "dog" / "0007.png"
    if change == "removed":
        path.unlink()
    else:
        colour(900).save(path if change == "altered" else folder / "dog" / "0099.png")
    make_zip(tmp_path / "x.zip", folder)
    second = set(contents(load(source, held_out=0)[0]))
    lost, won = {"added": (0, 1), "removed": (1, 0), "altered": (1, 1)}[change]
    assert (len(first - second), len(second - first)) == (lost, won)


def test_arrays_that_changed_are_prepared_anew(tmp_path):
    for start in (0, 100):
        np.save("x.npy", GARMENTS[start : start + 20])
        assert np.array_equal(load("x.npy", held_out=0)[0].images[:, 0], GARMENTS[start : start + 20])


@pytest.mark.parametrize("root", [".", "data"])
def test_sets_may_be_prepared_inside_their_source(tmp_path, root):
    make_folder(tmp_path, {"": 20})
    sets = [load_sets(DataConfig(source=".", root=root)) for _ in range(2)]
    colour(0).save(sets[0][0].folder / "contact_sheet.png")
    sets.append(load_sets(DataConfig(source=".", root=root)))
    assert [train.sha256 for train, _ in sets] == [sets[0][0].sha256] * 3


def test_names_that_are_no_text_are_read(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 2})
    (folder / "0000.png").rename(folder / "ne\nw \udcff.png")
    (folder / "bad \udcff.png").write_bytes(b"x")
    train, _ = load(folder, unreadable="skip", held_out=0)
    assert len(train) == 2
    with pytest.raises(ValueError, match="1 image of"):
        load(folder, held_out=0)


# an altered set


def altered(path, change):
    content = path.read_bytes()
    if change == "missing":
        path.unlink()
    elif change == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif change == "empty":
        path.write_bytes(b"")
    elif change == "shape":
        path.write_bytes(content.replace(b"(50, 3, 16, 16)", b"(50, 3, 32, 8) ").replace(b"(50,)", b"(5,) "))
    else:
        place = {"first byte": 0, "last byte": -2, "middle byte": len(content) // 2}[change]
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    return content


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "set.json"])
@pytest.mark.parametrize("change", ["missing", "truncated", "empty", "first byte", "middle byte", "last byte", "shape"])
def test_an_altered_set_is_refused_and_named(folder, name, change, in_memory):
    prepared = prepare(DataConfig(source=str(folder), root="root"))
    before = altered(prepared / name, change)
    if (prepared / name).exists() and (prepared / name).read_bytes() == before:
        pytest.skip("set.json has no such shape")
    with pytest.raises(ValueError, match=f"{prepared}.* is not as it was prepared.*delete the folder") as caught:
        open_set(prepared, in_memory)
    assert "\n" not in str(caught.value)
    if name != "set.json" or change != "missing":
        with pytest.raises(ValueError, match="not as it was prepared"):
            load(folder)
    shutil.rmtree(prepared)
    assert len(load(folder)[0]) == 45


def test_a_set_without_its_facts_is_prepared_anew(folder):
    prepared = prepare(DataConfig(source=str(folder), root="root"))
    (prepared / "set.json").unlink()
    assert len(load(folder)[0]) == 45


@pytest.mark.parametrize(
    "nonsense", ["[]", "null", "{}", "3", "[" * 100_000, '{"version": 1}', '{"version": 2}', "\xff"]
)
def test_nonsense_instead_of_facts_is_refused(folder, nonsense):
    prepared = prepare(DataConfig(source=str(folder), root="root"))
    (prepared / "set.json").write_text(nonsense, encoding="latin-1")
    with pytest.raises(ValueError, match=r"set.json is not as it was prepared"):
        open_set(prepared)


def test_every_fact_is_guarded(folder):
    prepared = prepare(DataConfig(source=str(folder), root="root"))
    facts = json.loads((prepared / "set.json").read_text(encoding="utf-8"))
    for name, value in [("class_names", ["cats", "dog"]), ("images", 49), ("shape", [3, 8, 32]), ("mean", [0, 0, 0])]:
        (prepared / "set.json").write_text(json.dumps({**facts, name: value}), encoding="utf-8")
        with pytest.raises(ValueError, match="its checksum differs"):
            open_set(prepared)


def test_facts_are_read_as_they_were_written(tmp_path):
    facts = {"version": 2, "shape": [1, 8, 8], "class_names": ["ä", "\udcff"], "unreadable": [["a", "b"]]}
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path) == {**facts, "shape": (1, 8, 8), "class_names": ("ä", "\udcff")}


# a prepared set as a source


def test_a_prepared_set_is_a_source(folder):
    train, held_out = load(folder)
    for options in ({}, {"size": 16}, {"channels": 3}, {"size": (16, 16), "in_memory": False}):
        again, again_held_out = load(train.folder, **options)
        assert (again.sha256, again_held_out.sha256) == (train.sha256, held_out.sha256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 32}, r"is prepared as \(3, 16, 16\), not with size \(32, 32\)"),
        ({"channels": 1}, "channels 1; prepare its source anew"),
        ({"held_out": 0.5}, "held_out is 0.5, and .* was prepared with held_out 0.2; leave it out"),
        ({"held_out": "y"}, "held_out is y, and .* was prepared with held_out 0.2; leave it out"),
        ({"limit": 5}, "limit is 5, and .* was prepared with limit none"),
        ({"fit": "stretch"}, "fit is stretch, and .* was prepared with fit pad"),
        ({"background": "black"}, "background is black, and .* was prepared with background white"),
    ],
)
def test_a_prepared_set_cannot_be_changed(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load(load(folder, held_out=0.2, fit="pad")[0].folder, **options)


def test_settings_of_a_prepared_set_may_be_given_again(tmp_path, folder):
    others = make_folder(tmp_path / "y", {"cat": 1, "dog": 2})
    settings = {"fit": "pad", "background": "black", "limit": 20}
    for held_out in (0.2, str(others)):
        prepared = load(folder, held_out=held_out, **settings)[0]
        for options in ({}, settings, {"held_out": held_out}, {"held_out": None, "fit": "crop"}):
            assert load(prepared.folder, **options)[0].sha256 == prepared.sha256


def test_the_classes_of_a_prepared_set_may_be_left_out(folder):
    sets = load(folder)
    for one, other in zip(load(sets[0].folder, labels=False), sets, strict=True):
        assert (one.labels, one.class_names) == (None, ())
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("content", ["{}", "[]", "text"])
def test_a_folder_of_pictures_with_a_set_json_is_one(tmp_path, content):
    folder = make_folder(tmp_path / "x", {"cat": 2, "dog": 2})
    for where in (folder, folder / "dog"):
        (where / "set.json").write_text(content, encoding="utf-8")
    assert len(load(folder, held_out=0)[0]) == 4
    assert len(load(folder, held_out=str(folder / "dog"), labels=False)[1]) == 2
    for where in (folder, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"{where} is no prepared set .*; give the folder of one$"):
            open_set(where)


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_of_a_machine_share_its_memory(folder, monkeypatch, processes):
    prepared = prepare(DataConfig(source=str(folder), root="root"))
    free = (prepared / "images.npy").stat().st_size * 8
    monkeypatch.setattr("denoiser.data.prepared.free_memory", lambda: free)
    modes, np_load = [], np.load
    monkeypatch.setattr(
        np, "load", lambda path, mmap_mode=None, **rest: modes.append(mmap_mode) or np_load(path, **rest)
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    open_set(prepared)
    assert modes[0] == (None if processes == 1 else "c")


def test_mapped_and_read_sets_are_equal(folder):
    prepared = prepare(DataConfig(source=str(folder), root="root"))
    for one, other in zip(open_set(prepared, True), open_set(prepared, False), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


# settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": ""}, "source is empty; name a folder, a file or a data set"),
        ({"size": 7}, "size is 7; it must be from 8 to 256"),
        ({"size": (8, 257)}, "size is 257; it must be from 8 to 256"),
        ({"channels": 0}, "channels is 0"),
        ({"held_out": 1.0}, "held_out is 1.0; give a share from 0 to below 1, or a source"),
        ({"held_out": -0.1}, "held_out is -0.1"),
        ({"held_out": float("nan")}, "held_out is nan"),
        ({"limit": 0}, "limit is 0"),
        ({"fit": "squeeze"}, "fit is 'squeeze'; it is one of crop, pad, stretch"),
        ({"background": "red"}, "background is 'red'; it is one of white, black"),
        ({"unreadable": "maybe"}, "unreadable is 'maybe'"),
        ({"labels": 1}, "labels is 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)
