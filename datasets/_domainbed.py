"""DomainBed's division of digits: dealt to environments, of which one is the test, a fifth of each held out."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from invbench.core.data import Split

HELD_OUT = 0.2


def domainbed_splits(whole: Split, env: NDArray[np.int64], test: int) -> dict[str, Split]:
    """Divide examples in random order into train, validation, test and test_out.

    Args:
        env: environment of each example (N,), in turn: 0, 1, ..., 0, 1, ...
        test: number of the test environment. It becomes the last one; others move down.
    """
    sizes = np.bincount(env)
    environments = len(sizes)
    # The order is random already: the first of each environment can be held out.
    held_out = torch.from_numpy(np.arange(len(env)) // environments < (HELD_OUT * sizes).astype(int)[env])
    in_test = torch.from_numpy(env == test)
    whole = replace(whole, env=torch.from_numpy(np.where(env == test, environments - 1, env - (env > test))))
    return {
        "train": whole.rows(~in_test & ~held_out),
        "validation": whole.rows(~in_test & held_out),
        "test": whole.rows(in_test & ~held_out),
        "test_out": whole.rows(in_test & held_out),
    }
