"""Random generators that are functions of their purpose, seed and position."""

import numpy as np
import torch

from denoiser.checks import check_seed, plain_arguments

# The first number of a key is the purpose, so that no two purposes share a stream.
DATA_ORDER, TRAINING_STEP, SAMPLING, CALIBRATION, JUDGE, EVALUATION, HELD_OUT, LIKELIHOOD, NETWORK, LOOKING = range(10)
RESTORATION, DISTILLATION = range(10, 12)


@plain_arguments
def seeded_generator(purpose: int, seed: int, *position: int) -> torch.Generator:
    """Return a CPU generator whose stream depends on the purpose, the seed and the position alone.

    Args:
        purpose: One of the constants above.
        seed: Seed of the user, 0 or more.
        position: Place in the run, such as a step or an image index.

    Raises:
        ValueError: If the seed is negative.
    """
    check_seed(seed)
    state = np.random.SeedSequence((purpose, seed, *position)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
