"""`BasicUNet` against the notebook's network, written out here as the notebook has it (its norms as BatchNorm2d)."""

import pytest
import torch
from torch import nn

from denoiser import BasicUNet
from tests.conftest import randomised


class NotebookDownBlock(nn.Module):
    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(in_ch, out_ch, 3, 1, 1), nn.BatchNorm2d(out_ch), nn.ReLU(),
            nn.Conv2d(out_ch, out_ch, 3, 1, 1), nn.BatchNorm2d(out_ch), nn.ReLU(),
            nn.MaxPool2d(2),
        )  # fmt: skip


class NotebookUpBlock(nn.Module):
    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.model = nn.Sequential(
            nn.ConvTranspose2d(2 * in_ch, out_ch, 3, 2, 1, 1), nn.BatchNorm2d(out_ch), nn.ReLU(),
            nn.Conv2d(out_ch, out_ch, 3, 1, 1), nn.BatchNorm2d(out_ch), nn.ReLU(),
        )  # fmt: skip


class NotebookUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down0 = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.down1 = NotebookDownBlock(16, 32)
        self.down2 = NotebookDownBlock(32, 64)
        self.to_vec = nn.Sequential(nn.Flatten(), nn.ReLU())
        self.dense_emb = nn.Sequential(
            nn.Linear(1024, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1024), nn.ReLU()
        )
        self.up0 = nn.Sequential(
            nn.Unflatten(1, (64, 4, 4)), nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.up1 = NotebookUpBlock(64, 32)
        self.up2 = NotebookUpBlock(32, 16)
        self.out = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 3, 1, 1))

    def forward(self, x):
        down0 = self.down0(x)
        down1 = self.down1.model(down0)
        down2 = self.down2.model(down1)
        up0 = self.up0(self.dense_emb(self.to_vec(down2)))
        up1 = self.up1.model(torch.cat((up0, down2), 1))
        up2 = self.up2.model(torch.cat((up1, down1), 1))
        return self.out(up2)


def test_it_has_the_notebooks_234_977_parameters():
    assert BasicUNet().num_parameters() == 234_977


def test_a_state_dict_of_the_notebook_loads_strictly_and_gives_the_same_output(noise):
    notebook = randomised(NotebookUNet().train())
    notebook.train()(noise)  # moves the running statistics away from where they start
    notebook.eval()
    model = BasicUNet().eval()
    model.load_state_dict(notebook.state_dict(), strict=True)
    assert torch.equal(model(noise, 0).sample, notebook(noise))


def test_without_time_conditioning_the_timestep_is_not_used(noise):
    model = randomised(BasicUNet())
    assert torch.equal(model(noise, 0).sample, model(noise, 999).sample)


@pytest.mark.parametrize("time_conditioning", [False, True])
def test_every_parameter_gets_a_gradient(time_conditioning, noise):
    model = randomised(BasicUNet(time_conditioning=time_conditioning)).train()
    model(noise, torch.arange(4)).sample.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_sizes_and_channels_are_arguments():
    model = BasicUNet((24, 16), in_channels=3, out_channels=2, block_out_channels=(8, 12, 20), time_conditioning=True)
    assert model(torch.randn(2, 3, 24, 16), 5).sample.shape == (2, 2, 24, 16)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(batch, 1, 16, 16\)"):
        BasicUNet()(torch.zeros(shape), 3)


def test_labels_are_refused(noise):
    with pytest.raises(ValueError, match="no classes"):
        BasicUNet()(noise, 3, class_labels=torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("widths", [(16, 32), (16, 32, 0), (16, 32, 63)])
def test_widths_that_cannot_work_are_refused(widths):
    with pytest.raises(ValueError, match="block_out_channels"):
        BasicUNet(block_out_channels=widths, time_conditioning=True)
