"""Preparations that fail, are killed, run beside each other, or after threads and process groups."""

import errno
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from denoiser.data import DataConfig, load_sets, open_set, prepare
from denoiser.data import preparation as module
from denoiser.data.preparation import Preparation
from tests.denoiser.data.files import colour, make_folder, tree
from tests.faults.runs import build_library, start_server

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Return a folder of 1,500 pictures in two classes, six parts."""
    return make_folder(tmp_path_factory.mktemp("many") / "x", {"cat": 700, "dog": 800})


@pytest.fixture(scope="module")
def whole(many, tmp_path_factory):
    """Return the files of the set that they make."""
    return tree(prepare(config_of(many, tmp_path_factory.mktemp("whole"))))


def config_of(source, root, **options):
    return DataConfig(source=str(source), root=str(root), size=24, **options)


def visible(root):
    return sorted(path.name for path in Path(root).iterdir() if not path.name.startswith("."))


def hidden_folders(root):
    return sorted(path.name for path in Path(root).iterdir() if path.name.startswith(".") and path.is_dir())


# images that cannot be read


def spoil(folder):
    """Put pictures that cannot be read into a folder; returns what is told of each."""
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "cat" / "text.png").write_text("a shopping list", encoding="utf-8")
    content = (folder / "cat" / "0000.png").read_bytes()
    (folder / "dog" / "cut.png").write_bytes(content[: len(content) * 2 // 3])
    Image.new("1", (10_000, 10_000)).save(folder / "dog" / "huge.png")
    return {"empty.png": "", "text.png": "cannot identify", "cut.png": "truncated", "huge.png": "decompression bomb"}


def test_images_that_cannot_be_read_are_counted_and_named(tmp_path):
    folder = make_folder(tmp_path / "x", {"cat": 4, "dog": 4})
    told = spoil(folder)
    with pytest.raises(ValueError, match="^4 images of .*/x cannot be used: ") as caught:
        prepare(config_of(folder, tmp_path / "root"))
    for name, reason in told.items():
        assert f"{name} cannot be read as a picture" in str(caught.value)
        assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("Repair or remove them, or give --data.unreadable skip")
    assert visible(tmp_path / "root") == []


def test_they_are_skipped_if_so_asked_and_remembered(tmp_path):
    folder = make_folder(tmp_path / "x", {"cat": 4, "dog": 4})
    told = spoil(folder)
    with pytest.raises(ValueError, match="4 images"):
        prepare(config_of(folder, tmp_path / "root"))
    train, _ = load_sets(config_of(folder, tmp_path / "root", unreadable="skip", held_out=0))
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    facts = module.json.loads((train.folder / "set.json").read_text(encoding="utf-8"))
    assert {Path(name).name for name, _ in facts["unreadable"]} == told.keys()
    with pytest.raises(ValueError, match="4 images"):
        load_sets(config_of(folder, tmp_path / "root", held_out=0))


def test_pillow_writes_no_lines_of_its_own(tmp_path, caplog, recwarn, capfd):
    folder = make_folder(tmp_path / "x", {"": 2})
    colour(0).save(tmp_path / "x.tiff")
    content = (tmp_path / "x.tiff").read_bytes()
    samples = b"\x15\x01\x03\x00\x01\x00\x00\x00"  # how the number of samples per pixel begins
    (folder / "logged.tiff").write_bytes(content.replace(samples + b"\x03", samples + b"\xff"))
    (folder / "warned.tiff").write_bytes(b"II*\0\x08\0\0\0")
    with pytest.raises(ValueError, match="2 images .*logged.tiff cannot be read .*warned.tiff cannot be read"):
        prepare(config_of(folder, tmp_path / "root"))
    assert (caplog.records, list(recwarn), capfd.readouterr()) == ([], [], ("", ""))


def test_many_unreadable_images_are_named_by_five(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 1})
    for index in range(12):
        (folder / f"bad-{index}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^12 images.*bad-2.png.*; and 7 more\. Repair"):
        prepare(config_of(folder, tmp_path / "root"))


def test_an_image_that_is_mended_without_a_trace_is_read_again(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 3})
    path = folder / "0001.png"
    content, facts = path.read_bytes(), path.stat()
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(ValueError, match="^1 image of"):
        prepare(config_of(folder, tmp_path / "root"))
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert len(load_sets(config_of(folder, tmp_path / "root", held_out=0))[0]) == 3


def test_a_set_that_cannot_be_leaves_no_parts(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 3})
    colour(0, (24, 20)).save(folder / "large.png")
    with pytest.raises(ValueError, match="give --data.size"):
        prepare(DataConfig(source=str(folder), root=str(tmp_path / "root")))
    with pytest.raises(ValueError, match="give --data.channels 3"):
        prepare(config_of(folder, tmp_path / "root", channels=2, unreadable="skip"))
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 16, 16), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"image 0 of .*x.npy has 4 channels, not 3; only grey"):
        prepare(config_of(folder, tmp_path / "root", held_out=str(tmp_path / "x.npy"), unreadable="skip"))
    assert hidden_folders(tmp_path / "root") == []


def test_a_source_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    for name in "ab":
        (tmp_path / "x" / f"{name}.png").write_bytes(b"x")
    for unreadable in ("stop", "skip"):
        with pytest.raises(ValueError, match="none of the 2 images of .*x can be read: .*a.png cannot be read as"):
            prepare(config_of(tmp_path / "x", tmp_path / "root", unreadable=unreadable))
    assert not (tmp_path / "root").exists()


# where it is written


def test_a_root_that_cannot_be_written_is_one_line_unless_the_set_is_there(tmp_path, many, monkeypatch):
    with pytest.raises(OSError, match=r"/proc/x/.* cannot be written \(.*: /proc\); give another place"):
        prepare(config_of(many, "/proc/x"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"file/root/.* cannot be written"):
        prepare(config_of(many, tmp_path / "file" / "root"))
    prepared = prepare(config_of(many, tmp_path / "root"))
    monkeypatch.setattr("denoiser.data.prepared.check_writable", lambda path: pytest.fail("is written to"))
    assert prepare(config_of(many, tmp_path / "root")) == prepared


def _prepare_with(environment, config, queue):
    os.environ.update(environment)
    try:
        prepare(config)
    except OSError as error:
        queue.put((error.errno, str(error)))
    else:
        queue.put(None)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    return start_server(build_library(tmp_path_factory.mktemp("faults")))


@pytest.mark.slow
def test_a_disk_that_fills_at_any_write_leaves_nothing_and_the_next_start_goes_on(tmp_path, many, whole, faulty):
    queue, met = faulty.Queue(), 0
    for at in [1, 2, 3, 5, 8, 12, 17, 23, 30, 40, 55, 75, 100]:
        root = tmp_path / str(at)
        root.mkdir()
        environment = {
            **{"FAULT_UNDER": str(root), "FAULT_AT": str(at), "FAULT_ERRNO": str(errno.ENOSPC)},
            **{"FAULT_LASTS": "1", "FAULT_TOLD": str(tmp_path / "told")},
        }
        process = faulty.Process(target=_prepare_with, args=(environment, config_of(many, root), queue))
        process.start()
        result = queue.get(timeout=60)
        process.join(60)
        assert process.exitcode == 0
        if result is None:
            continue
        met += 1
        assert "No space left on device" in result[1]
        assert str(root) in result[1]
        assert "\n" not in result[1]
        assert visible(root) == []
        assert tree(prepare(config_of(many, root))) == whole
        assert hidden_folders(root) == []
    assert met > 5


# killed preparations


def _prepare(config, cores=2):
    os.setsid()
    module.num_cores = lambda: cores
    prepare(config)


def descendants(pid):
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("part", [0, 1, 2, 3])
def test_a_preparation_that_is_killed_at_any_moment_goes_on_to_the_same_set(tmp_path, many, whole, part):
    """At moments of decoding, joining and moving, known by what is on the disk, and a few milliseconds on."""
    root = tmp_path / "root"
    for delay in (0, 0.003, 0.01, 0.03):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        process = FORK.Process(target=_prepare, args=(config_of(many, root),))
        process.start()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.is_alive():
            parts = len(list(root.glob(".*.parts/*.npz")))
            if (parts >= 2 * part and part < 3) or list(root.glob(".*.parts/set")):
                break
        time.sleep(delay)
        workers = descendants(process.pid)
        process.kill()
        process.join()
        for _ in range(200):
            if not any(worker.is_running() and worker.status() != "zombie" for worker in workers):
                break
            time.sleep(0.01)
        else:
            pytest.fail("workers go on without the main process")
        for name in visible(root):  # whole, or not there
            assert tree(root / name) == whole
        assert tree(prepare(config_of(many, root))) == whole
        prepare(config_of(many, root))
        assert hidden_folders(root) == []


def test_what_was_decoded_is_not_decoded_again(tmp_path, many, whole):
    root = tmp_path / "root"
    process = FORK.Process(target=_prepare, args=(config_of(many, root), 1))
    process.start()
    while len(list(root.glob(".*.parts/*.npz"))) < 3:
        time.sleep(0.001)
    process.kill()
    process.join()
    there = len(list(root.glob(".*.parts/[0-9]*.npz")))
    told = []
    prepared = prepare(config_of(many, root), on_progress=lambda done, total: told.append((done, total)))
    assert told[0] == (min(1500, there * 256), 1500)
    assert told[-1] == (1500, 1500)
    assert tree(prepared) == whole


def test_what_a_killed_process_left_after_its_last_step_is_removed(tmp_path, many, whole):
    prepared = prepare(config_of(many, tmp_path / "root"))
    parts = module.parts_of(prepared)
    parts.mkdir()
    (parts / "0000000000.npz").write_bytes(b"x")
    assert tree(prepare(config_of(many, tmp_path / "root"))) == whole
    assert not parts.exists()


def test_a_worker_that_is_killed_is_told_in_one_line(tmp_path, many, monkeypatch):
    parent = os.getpid()

    def kill(self, *arguments):
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Preparation, "decode_part", kill)
    with pytest.raises(OSError, match=r"cannot be prepared \(a process that decodes was killed.*goes on"):
        prepare(config_of(many, tmp_path / "root"))


def test_a_damaged_part_is_named(tmp_path, many):
    root = tmp_path / "root"
    process = FORK.Process(target=_prepare, args=(config_of(many, root), 1))
    process.start()
    while not (parts := list(root.glob(".*.parts/[0-9]*.npz"))):
        time.sleep(0.001)
    process.kill()
    process.join()
    parts[0].write_bytes(parts[0].read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{parts[0].name} is damaged; delete it, and start again"):
        prepare(config_of(many, root))
    parts[0].unlink()
    prepare(config_of(many, root))


def test_two_processes_that_prepare_one_set_make_it_once(tmp_path, many, whole):
    queue = FORK.Queue()

    def run():
        told = []
        prepared = prepare(config_of(many, tmp_path / "root"), on_progress=lambda *numbers: told.append(numbers))
        queue.put((str(prepared), len(told)))

    processes = [FORK.Process(target=run) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert results[0][0] == results[1][0]
    assert min(told for _, told in results) == 0
    assert tree(Path(results[0][0])) == whole


# the way that it is decoded


@pytest.mark.parametrize("cores", [1, 3])
def test_the_set_does_not_depend_on_the_cores(tmp_path, many, whole, monkeypatch, cores):
    monkeypatch.setattr(module, "num_cores", lambda: cores)
    assert tree(prepare(config_of(many, tmp_path / "root"))) == whole


def test_threads_where_processes_are_not_forked_make_the_same_set(tmp_path, many, whole, monkeypatch):
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert tree(prepare(config_of(many, tmp_path / "root"))) == whole


def _after_a_step(config):
    torch.set_num_threads(2)
    network = torch.nn.Conv2d(3, 64, 3)
    for _ in range(3):  # with the threads of OpenMP, and autograd's
        network(torch.randn(32, 3, 64, 64)).square().mean().backward()
    assert psutil.Process().num_threads() > 1
    prepare(config)
    network(torch.randn(32, 3, 64, 64)).square().mean().backward()


def _after_a_process_group(config):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    torch.distributed.barrier()
    prepare(config)
    total = torch.ones(1000)
    torch.distributed.all_reduce(total)
    assert total.sum() == 1000
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("before", [_after_a_step, _after_a_process_group])
def test_processes_are_forked_safely_after(tmp_path, many, whole, before):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=before, args=(config_of(many, tmp_path / "root"),))
    process.start()
    process.join(100)
    if process.is_alive():
        process.kill()
        pytest.fail("it hangs")
    assert process.exitcode == 0
    [name] = visible(tmp_path / "root")
    assert tree(tmp_path / "root" / name) == whole


def test_an_interrupt_ends_the_workers(tmp_path, many):
    process = FORK.Process(target=_prepare, args=(config_of(many, tmp_path / "root"),))
    process.start()
    while not list((tmp_path / "root").glob(".*.parts/*.npz")):
        time.sleep(0.001)
    workers = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to all
    process.join(20)
    assert process.exitcode is not None
    assert not any(worker.is_running() and worker.status() != "zombie" for worker in workers)


def test_a_large_image_makes_a_part_of_few(tmp_path):
    images = np.zeros((400, 3, 256, 256), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(400), 256)
    np.save(tmp_path / "x.npy", images)
    told = []
    config = DataConfig(source=str(tmp_path / "x.npy"), root=str(tmp_path / "root"))
    train, held_out = open_set(prepare(config, on_progress=lambda done, total: told.append(done)), False)
    assert max(np.diff([0, *told])) * images[0].nbytes <= module.PART_BYTES
    assert (len(train), len(held_out)) == (360, 40)


def test_pictures_of_the_size_asked_are_kept_to_the_bit(tmp_path):
    folder = make_folder(tmp_path / "x", {"": 0})
    for index in range(9):
        colour(index, (40, 40)).save(folder / f"{index}.png")
    train, _ = load_sets(DataConfig(source=str(folder), root=str(tmp_path / "root"), held_out=0))
    for index, image in enumerate(train.images):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(colour(index, (40, 40))))
