import torch
from diffusers.models.embeddings import get_timestep_embedding

from denoiser.embeddings import drop_labels, sinusoidal_embedding


def test_sinusoidal_embedding_is_diffusers_own():
    timesteps = torch.tensor([0, 1, 500, 999])
    expected = get_timestep_embedding(timesteps, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(timesteps, 32), expected, atol=1e-4, rtol=0)


def test_dropped_labels_become_the_null_label_and_the_others_stay():
    labels = drop_labels(torch.tensor([3, 4, 5]), 10, torch.tensor([False, True, False]))
    assert labels.tolist() == [3, 10, 5]
