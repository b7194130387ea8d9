"""Pushing to the Hugging Face Hub and loading from it, against a server on loopback that speaks its API."""

import json
import re
import shutil
import socket

import pytest
from huggingface_hub import ModelCard

from pipelines import load_pipeline
from pipelines.commands import sample
from pipelines.pretrained import FOLDER
from tests.hub_server import TOKEN, Hub
from tests.scripts.conftest import SMOKE, command

QUICK = ["--training.max_steps", "4", "--sampling.steps", "2", "--tracking.mode", "disabled"]


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """The folder of a run that was pushed to `user/first`, and how its command ended."""
    run_dir = tmp_path_factory.mktemp("run") / "run"
    train = [*SMOKE, *QUICK, "--output_dir", str(run_dir), "--hub_repo", "user/first"]
    return run_dir, command(*train, **hub.environment(run_dir.parent / "home"))


def nobody():
    """Return an address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def slow(*values):
    """Return a case of a test that runs under `make slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def again(run_dir, repository, **environment):
    """Resume a finished run, and push its pipeline to a repository."""
    train = [*SMOKE, *QUICK, "--output_dir", str(run_dir), "--resume", "latest", "--hub_repo", repository]
    return command(*train, **environment)


def errors_of(names, **environment):
    """Return the error of loading each pipeline, in a process of its own folder."""
    code = "\n".join(
        [
            "import sys; from pipelines import find_pipeline",
            "for name in sys.argv[1:]:",
            "    try: find_pipeline(name)",
            "    except (ValueError, OSError) as error: print(repr(str(error)))",
        ]
    )
    ended = command("-c", code, *names, **environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_a_finished_run_is_pushed_with_its_card_and_grid(hub, pushed):
    run_dir, ended = pushed
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    assert f"pushed to {hub.endpoint}/user/first\n" in ended.stdout
    files = dict(hub.repositories["user/first"])
    own = {path.relative_to(run_dir / "pipeline").as_posix(): path for path in run_dir.glob("pipeline/**/*.*")}
    card, own_card = files.pop("README.md").decode(), own.pop("README.md").read_text(encoding="utf-8")
    assert files == {name: path.read_bytes() for name, path in own.items()}
    assert "samples.png" in files
    assert ModelCard(card).data.to_dict() == ModelCard(own_card).data.to_dict()
    changed = [line for line in card.splitlines() if line not in own_card.splitlines()]
    assert changed == [
        "from pipelines import find_pipeline, make_scheduler",
        'pipeline = find_pipeline("user/first")',
        "After `import pipelines`, diffusers loads it too: "
        '`DiffusionPipeline.from_pretrained(snapshot_download("user/first"))`.',
    ]
    assert str(run_dir.parent) not in "".join(content for content in map(str, files.values()))
    assert TOKEN not in ended.stdout + ended.stderr + card


@pytest.mark.parametrize("cut", [{"HF_ENDPOINT": "nobody"}, slow({"HF_HUB_OFFLINE": "1"})])
def test_it_samples_to_the_same_bits_from_the_hub_and_then_from_its_cache(hub, pushed, call, tmp_path, cut):
    given = ["--num_images", "4", "--steps", "2", "--labels", "all", "--pipeline"]
    call(sample, *given, pushed[0] / "pipeline", "--output", tmp_path / "folder.png")
    client = hub.environment(tmp_path / "home", token="")
    cut_off = {**client, **({"HF_ENDPOINT": nobody()} if "HF_ENDPOINT" in cut else cut)}
    for name, environment in (("hub", client), ("cache", cut_off)):
        output = ["--output", str(tmp_path / f"{name}.png")]
        ended = command("scripts/sample.py", *given, "user/first", *output, **environment)
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / f"{name}.png").read_bytes() == (tmp_path / "folder.png").read_bytes()


def test_the_code_on_the_pushed_card_works(hub, pushed, tmp_path):
    card = hub.repositories["user/first"]["README.md"].decode()
    code = card.split("```python\n")[1].split("```")[0].replace("batch_size=8", "batch_size=1")
    other = re.search(r"`(DiffusionPipeline\.from_pretrained.*?)`\.", card)[1]
    lines = ["from diffusers import DiffusionPipeline", "from huggingface_hub import snapshot_download", code]
    lines.append(f"print(type({other}).__name__, images[0].size)")
    ended = command("-c", "\n".join(lines), **hub.environment(tmp_path))
    assert ended.stdout == "DenoisingPipeline (16, 16)\n", ended.stderr


def test_a_finished_run_is_pushed_again_when_asked(hub, pushed, tmp_path):
    ended = again(pushed[0], "user/second", **hub.environment(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    assert f"pushed to {hub.endpoint}/user/second\n" in ended.stdout
    first, second = (dict(hub.repositories[f"user/{name}"]) for name in ("first", "second"))
    assert b'find_pipeline("user/second")' in second.pop("README.md")
    assert {**first, "README.md": None} == {**second, "README.md": None}


@pytest.mark.parametrize(
    ("repository", "changed", "message"),
    [
        ("user/third", {"HF_TOKEN": "hf_of_nobody_at_all"}, "Invalid username or password"),
        slow("user/third", {"HF_TOKEN": "hf_of_nobody\x0b_at_all"}, "has characters that no token has"),
        slow("another/third", {}, "You don't have the rights to create a model under the namespace another"),
        slow("user/third", {"HF_ENDPOINT": "nobody"}, "Connection refused"),
        slow("user/third", {"HF_HUB_OFFLINE": "1"}, "offline mode is enabled"),
    ],
)
def test_a_push_that_fails_is_one_warning(hub, pushed, tmp_path, repository, changed, message):
    if changed.get("HF_ENDPOINT"):
        changed = {"HF_ENDPOINT": nobody()}
    ended = again(pushed[0], repository, **{**hub.environment(tmp_path), **changed})
    assert ended.returncode == 0
    (line,) = [line for line in ended.stderr.splitlines() if line]
    assert line.startswith(f"WARNING: pushing to {repository}, which --resume latest tries again, failed (")
    assert message in line
    assert TOKEN not in line
    assert "of_nobody" not in line
    load_pipeline(pushed[0] / "pipeline")
    assert repository not in hub.repositories


def test_code_and_pickles_of_a_repository_are_not_downloaded(hub, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(FOLDER / "teacher", folder)
    for name in ("pipeline.py", "unet/unet.py", "unet/diffusion_pytorch_model.bin", "scheduler/extra.pkl"):
        (folder / name).write_text("raise SystemExit('was run')", encoding="utf-8")
    hub.add("stranger/code", folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, changed in ("class", {"_class_name": ["pipeline", "Mine"]}), ("network", {"unet": ["unet", "Mine"]}):
        (folder / "model_index.json").write_text(json.dumps({**index, **changed}), encoding="utf-8")
        hub.add(f"stranger/{name}", folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    hub.add("stranger/pickled", folder)
    hub.add("stranger/empty", tmp_path / "nothing")
    names = ["code", "class", "network", "pickled", "empty", "nobody"]
    errors = errors_of([f"stranger/{name}" for name in names], **hub.environment(tmp_path / "home", token=""))
    assert "stranger/network cannot be loaded as a pipeline" in errors[0]  # the others are read without their code
    assert errors[1:] == [
        "'stranger/pickled on the Hub has no weights in safetensors, and others are not loaded'",
        "'stranger/empty is not a saved pipeline: it has no model_index.json'",
        "'there is no folder stranger/nobody, and the Hub has no such repository, or none that you may read'",
    ]
    downloaded = {path.suffix for path in (tmp_path / "home" / "hub").rglob("snapshots/*/**/*.*")}
    assert downloaded == {".json", ".safetensors"}


def test_without_a_connection_or_a_copy_it_is_one_line(tmp_path):
    given = ["scripts/sample.py", "--pipeline", "user/first", "--output", str(tmp_path / "grid.png")]
    ended = command(*given, HF_HOME=str(tmp_path / "home"), NO_PROXY="127.0.0.1", HF_ENDPOINT=nobody())
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("sample.py: error: there is no folder user/first, and the Hub cannot be reached (")
    assert not (tmp_path / "grid.png").exists()
    (offline,) = errors_of(["user/first"], HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert "there is no folder user/first, and the Hub cannot be reached (" in offline


@pytest.mark.slow
def test_of_two_processes_one_pushes(hub, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/two_cpu_processes.yaml"]
    before = len(hub.requests)
    train = [*SMOKE, *QUICK, "--output_dir", str(tmp_path / "run"), "--hub_repo", "user/fourth"]
    ended = command(*launch, *train, **hub.environment(tmp_path / "home"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("pushed to") == 1
    assert hub.requests[before:].count(("POST", "/api/repos/create")) == 1
