"""Random draws as functions of where they are used, so that nothing depends on what was drawn before."""

import numpy as np
import torch

from denoiser.checks import check_seed
from denoiser.plain import plain_arguments

# The first number of a key says what the draws are for, so that no two purposes share a stream.
DATA_ORDER, TRAINING_STEP, SAMPLING, CALIBRATION, JUDGE, EVALUATION, HELD_OUT, LIKELIHOOD, NETWORK, LOOKING = range(10)
RESTORATION, DISTILLATION = range(10, 12)


@plain_arguments
def seeded_generator(purpose: int, seed: int, *position: int) -> torch.Generator:
    """Return a CPU generator whose stream is a function of the purpose, the seed and the position alone.

    Args:
        purpose: One of the names above.
        seed: The user's seed, 0 or more.
        position: Where in the run, such as a step or an image's index.

    Raises:
        ValueError: If the seed is negative.
    """
    check_seed(seed)
    state = np.random.SeedSequence((purpose, seed, *position)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
