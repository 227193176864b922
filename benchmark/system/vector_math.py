"""The first square roots of a process must be those of every other.

On an x86 CPU torch hands long vectors to Intel's vector mathematics, in several threads. In a process's first call that
library finds out what the processor can do, and a thread that comes while another is still finding out takes a kernel
that rounds otherwise: in 3 of 60 fresh processes the second half of the first square roots differed in their last bits,
enough to make another run of it. A call that one thread computes alone settles the matter beforehand.
"""

import torch

FUNCTIONS = (torch.sqrt, torch.exp, torch.log, torch.sin, torch.cos, torch.tan, torch.tanh, torch.erf)


def settle() -> None:
    """Call the vector functions once on a single number of either precision."""
    for dtype in (torch.float32, torch.float64):
        number = torch.full((1,), 0.5, dtype=dtype)
        for function in FUNCTIONS:
            function(number)
