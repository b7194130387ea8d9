import json

import pytest
import torch
from torch import nn

from denoiser import UNet
from denoiser.unet import DecoderLevel
from tests.conftest import tiny_unet


def test_a_new_network_predicts_zero(noise):
    assert not UNet()(noise, 3).sample.any()


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"sample_size": (8, 12)}, (2, 1, 8, 12)),
        ({"patch_size": 2}, (2, 1, 16, 24)),
        ({"in_channels": 3, "out_channels": 6}, (2, 3, 16, 16)),
        ({"block_out_channels": (16, 16, 32, 32), "attention_levels": (2, 3)}, (1, 1, 32, 8)),
        ({"block_out_channels": (48,), "attention_levels": (), "layers_per_block": 3}, (1, 1, 5, 7)),
        ({"layers_per_block": (1, 3), "concatenate_skips": True}, (2, 1, 16, 16)),
    ],
)
def test_any_size_channels_and_depth(options, shape):
    model = tiny_unet(**options)
    prediction = model(torch.randn(shape), 3).sample
    assert prediction.shape == (shape[0], options.get("out_channels", 1), *shape[2:])


def test_no_labels_means_the_null_label_for_every_image(noise):
    model = tiny_unet()
    null = torch.full((4,), model.null_label)
    assert torch.equal(model(noise, 3).sample, model(noise, 3, class_labels=null).sample)


def test_labels_matter(noise):
    model = tiny_unet()
    predictions = [model(noise, 3, class_labels=torch.full((4,), label)).sample for label in range(11)]
    for one in range(11):
        for other in range(one):
            assert not torch.allclose(predictions[one], predictions[other])


def test_an_unconditional_network_refuses_labels(noise):
    with pytest.raises(ValueError, match="unconditional"):
        tiny_unet(num_class_embeds=None)(noise, 3, class_labels=torch.zeros(4, dtype=torch.long))


def test_groups_of_the_default_norms_have_at_least_16_channels():
    norms = [module for module in UNet().modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    assert min(norm.num_channels // norm.num_groups for norm in norms) >= 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_out_channels": (32, 40)}, "40 is not divisible by 16.*32 or 48"),
        ({"block_out_channels": ()}, "levels is 0"),
        ({"attention_levels": (5,)}, "attention_levels has 5; the levels are 0 to 2"),
        ({"attention_levels": (2,), "attention_head_dim": 28}, r"block_out_channels\[2\] 96 is not divisible by 28"),
        ({"num_class_embeds": 0}, "num_class_embeds is 0"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"layers_per_block": (1, 0, 2)}, "layers_per_block is 0"),
        ({"layers_per_block": (1, 2)}, r"layers_per_block is \(1, 2\); give one number, or 3, one a level"),
        ({"layers_per_block": 1.5}, "layers_per_block is 1.5; it must be a whole number"),
        ({"dropout": 1.5}, "dropout probability has to be between 0 and 1, but got 1.5"),
        ({"patch_size": 2, "sample_size": 20}, "20 is not divisible by 8.*16 or 24"),
        ({"sample_size": (16, 18)}, "width 18 is not divisible by 4"),
        ({"sample_size": (16, 16, 16)}, "give one number, or a height and a width"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**options)


@pytest.mark.parametrize("concatenate_skips", [False, True])
def test_a_decoder_block_sees_the_coarser_map_and_that_of_its_twin_in_the_encoder(concatenate_skips):
    seen = []
    level = DecoderLevel([Recorder(seen), Recorder(seen)], nn.Identity(), concatenate_skips)
    x, first, second = torch.randn(3, 2, 4, 8, 8).unbind()
    level(x, torch.zeros(2, 1), [first, second])
    join = (lambda one, other: torch.cat([one, other], dim=1)) if concatenate_skips else torch.add
    assert torch.equal(seen[0], join(x, second))
    assert torch.equal(seen[1], join(seen[0], first))


class Recorder(nn.Module):
    """Returns what it is given, and notes it down."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x, emb):
        self.seen.append(x)
        return x


def test_a_network_saved_with_removed_arguments_loads_at_their_defaults_only(noise, tmp_path, caplog):
    model = tiny_unet()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = {**json.loads(path.read_text(encoding="utf-8")), "middle_blocks": 0, "second_kernel_size": 3}
    path.write_text(json.dumps(saved), encoding="utf-8")
    assert torch.equal(UNet.from_pretrained(tmp_path)(noise, 3).sample, model(noise, 3).sample)
    assert not caplog.records
    for name, value in (("middle_blocks", 1), ("second_kernel_size", 1)):
        path.write_text(json.dumps({**saved, name: value}), encoding="utf-8")
        with pytest.raises(ValueError, match=f"{name} is 1, a removed option; commit e7d8e90 is the last"):
            UNet.from_pretrained(tmp_path)


def test_each_level_has_its_own_number_of_blocks_down_and_up():
    model = tiny_unet(layers_per_block=(1, 3))
    assert [len(level.blocks) for level in model.encoder] == [1, 3]
    assert [len(level.blocks) for level in model.decoder] == [3, 1]


def test_dropout_acts_in_training_only(noise):
    model = tiny_unet(dropout=0.5)
    assert torch.equal(model(noise, 3).sample, tiny_unet()(noise, 3).sample)
    model.train()
    assert not torch.allclose(model(noise, 3).sample, model(noise, 3).sample)


def test_concatenated_skips_double_the_channels_into_the_decoder():
    def channels(**options):
        model = tiny_unet(**options)
        return [block.residual.conv1.in_channels for level in model.decoder for block in level.blocks]

    assert channels() == [32, 16]
    assert channels(concatenate_skips=True) == [64, 32]


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 16, 16), (2, 1, 16, 18)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="expected|not divisible"):
        UNet()(torch.zeros(shape), 3)
