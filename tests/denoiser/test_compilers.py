"""Tracing, exporting and compiling: what comes out says what the network says, at sizes that were not shown."""

import copy
import io
import pickle

import pytest
import torch
from torch.export import Dim

from denoiser.blocks import Downsample, SelfAttention, Upsample
from tests.conftest import tiny_basic_unet, tiny_unet
from tests.faults.runs import SOAK

NETWORKS = {
    "with labels": tiny_unet,
    "labels left out": tiny_unet,
    "without classes": lambda: tiny_unet(num_class_embeds=None, attention_levels=()),
    "patches, joined skips": lambda: tiny_unet(patch_size=2, concatenate_skips=True, in_channels=3, out_channels=3),
    "basic": tiny_basic_unet,
    "basic without time": lambda: tiny_basic_unet(time_conditioning=False),
}
LABELLED = {"with labels", "patches, joined skips"}
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = [(2, 16, 16), (4, 16, 16), (1, 16, 16), (3, 24, 32)]


def sizes(name):
    """Return batch, height and width to try; a `BasicUNet` has a size of its own."""
    return [size for size in SIZES if size[1:] == (16, 16) or "basic" not in name]


def inputs(name, network, size, timestep="batch", layout=torch.contiguous_format):
    """Return noisy images, timesteps and, where the network is given some, labels."""
    batch, height, width = size
    generator = torch.Generator().manual_seed(batch)
    images = torch.randn(batch, network.config.in_channels, height, width, generator=generator)
    timesteps = {"batch": torch.arange(batch) * 100 + 3, "scalar": torch.tensor(7), "number": 7}[timestep]
    labels = (torch.arange(batch) % 10,) if name in LABELLED else ()
    return images.contiguous(memory_format=layout), timesteps, *labels


class Tuple(torch.nn.Module):
    """A network that returns a plain tensor, which is what a trace can return."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *given):
        return self.network(*given, return_dict=False)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("timestep", ["batch", "scalar"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trace_holds_at_other_batches_and_sizes(name, timestep, layout):
    network = NETWORKS[name]().to(memory_format=layout)
    traced = torch.jit.trace(Tuple(network), inputs(name, network, (2, 16, 16), timestep, layout))
    content = io.BytesIO()
    torch.jit.save(traced, content)
    content.seek(0)
    traced = torch.jit.load(content)
    for size in sizes(name):
        given = inputs(name, network, size, timestep, layout)
        torch.testing.assert_close(traced(*given), network(*given).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("timestep", ["batch", "scalar", "number"])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_program_holds_at_other_batches_and_sizes(name, timestep):
    network = NETWORKS[name]()
    given = inputs(name, network, (2, 16, 16) if "basic" in name else (2, 24, 16), timestep)
    spatial = {} if "basic" in name else {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    by_batch = {0: Dim.DYNAMIC}
    dynamic = [{**by_batch, **spatial}, by_batch if timestep == "batch" else None, by_batch][: len(given)]
    exported = torch.export.export(Tuple(network), given, dynamic_shapes=(tuple(dynamic),))
    content = io.BytesIO()
    torch.export.save(exported, content)
    content.seek(0)
    exported = torch.export.load(content).module()
    for size in sizes(name):
        given = inputs(name, network, size, timestep)
        torch.testing.assert_close(exported(*given), network(*given).sample, atol=1e-5, rtol=0)


@pytest.fixture
def inductor(monkeypatch, tmp_path):
    """The compiler, with an empty cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()


def check_outputs_and_gradients(compiled, network, given):
    """Compare what both predict and the gradients that this gives every parameter."""
    found = []
    for run in (compiled, network):
        network.zero_grad()
        prediction = run(*given).sample
        prediction.square().mean().backward()
        gradients = [each.grad.clone() for each in network.parameters() if each.grad is not None]
        found.append([prediction.detach(), *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_of_the_whole_network_has_its_gradients(name):
    """The graph is captured and differentiated as for any compiler, and run without one, which is faster here."""
    torch._dynamo.reset()
    network = NETWORKS[name]()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    check_outputs_and_gradients(compiled, network, inputs(name, network, (2, 16, 16)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with labels", "basic"])
def test_one_graph_serves_other_batches_and_sizes(name):
    torch._dynamo.reset()
    network = NETWORKS[name]().to(memory_format=torch.channels_last)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in [(2, 16, 16), (4, 16, 16)] if name == "basic" else [(2, 24, 16), (4, 16, 32)]:
        with torch.compiler.set_stance("fail_on_recompile" if size[0] == 4 else "default"):
            given = inputs(name, network, size, layout=torch.channels_last)
            check_outputs_and_gradients(compiled, network, given)


@pytest.mark.slow
def test_inductor_compiles_what_moves_axes_at_any_size_with_gradients(inductor):
    """The parts whose permuted maps it could not order, in the place of the whole network, which takes minutes."""
    parts = torch.nn.Sequential(Downsample(1, 16), SelfAttention(16, 16, 16), Upsample(16, 16))
    compiled = torch.compile(parts, fullgraph=True, dynamic=True)
    for size in [(2, 1, 24, 16), (4, 1, 16, 32)]:
        images = torch.randn(size, generator=torch.Generator().manual_seed(0))
        gradients = []
        for run in (compiled, parts):
            parts.zero_grad()
            run(images).square().mean().backward()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in parts.parameters()]))
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not SOAK, reason="takes minutes")
@pytest.mark.parametrize("name", NETWORKS)
def test_inductor_compiles_a_whole_network_at_any_size_with_gradients(name, inductor):
    network = NETWORKS[name]()
    compiled = torch.compile(network, fullgraph=True, dynamic=True)
    for size in [(2, 16, 16), (4, 16, 16)] if "basic" in name else [(2, 24, 16), (4, 16, 32)]:
        check_outputs_and_gradients(compiled, network, inputs(name, network, size))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_says_the_same(name, twin):
    network = NETWORKS[name]()
    given = inputs(name, network, (2, 16, 16))
    assert torch.equal(twin(network)(*given).sample, network(*given).sample)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_precision_is_near_in_a_graph_too(name, dtype):
    torch._dynamo.reset()
    network = NETWORKS[name]()
    images, *others = inputs(name, network, (2, 16, 16))
    exact = network(images, *others).sample
    network.to(dtype)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    errors = [run(images.to(dtype), *others).sample.float() - exact for run in (compiled, network)]
    ours, eager = (error.square().mean().sqrt() for error in errors)
    assert ours < 1.1 * eager
    assert eager < 0.02 * exact.square().mean().sqrt()
