"""GPUs that a sweep may use, by the names that `CUDA_VISIBLE_DEVICES` takes."""

import re
from collections.abc import Sequence

from invbench.errors import UserError, brief

MOST_PROCESSES = 4096
"""Maximum number of processes at a time on one machine, and of threads of each."""
NAME = re.compile(r"[0-9]+|GPU-[\w-]+|MIG-[\w/-]+")
NO_GPU = ("none", "nodevfiles")
"""Values of `CUDA_VISIBLE_DEVICES`, in lower case, by which containers and Slurm say that there is no GPU."""


def visible_gpus(variable: str | None, count: int) -> list[str]:
    """List the GPUs that CUDA shows to this process, each by the name that shows it alone to another process.

    Args:
        variable: `CUDA_VISIBLE_DEVICES`: numbers, UUIDs (`GPU-...`) or MIG instances (`MIG-...`); None where it is
            not set. As for CUDA, the first negative number ends the list, and an empty one hides all GPUs.
        count: number of GPUs that CUDA finds under this setting. It finds one MIG instance only, whatever the list:
            a process can use one. So instances are not counted.

    Raises:
        UserError: something in the list is no name of a GPU, or it is there twice, upon which CUDA shows none.
    """
    if variable is None:
        return [str(index) for index in range(count)]
    if variable.strip().lower() in NO_GPU:
        return []
    names: list[str] = []
    for part in variable.split(","):
        name = part.strip()
        if re.fullmatch("-[0-9]+", name) or not variable.strip():
            break
        if not NAME.fullmatch(name):
            raise UserError(
                f"CUDA_VISIBLE_DEVICES={brief(variable)}: '{name}' is no number, GPU-... or MIG-... of a GPU"
            )
        if name in names:
            raise UserError(f"CUDA_VISIBLE_DEVICES={brief(variable)} names GPU {name} twice; CUDA shows none then")
        names.append(name)
    gpus = [name for name in names if not name.startswith("MIG-")][:count]
    return [name for name in names if name.startswith("MIG-") or name in gpus] if count else []


def chosen_gpus(asked: str | None, visible: Sequence[str]) -> list[str]:
    """Return the visible GPUs that `--gpus` asks for by index, such as `0,2`; all of them without it.

    Raises:
        UserError: there is no such index.
    """
    if asked is None:
        return list(visible)
    indices = [part.strip() for part in asked.split(",") if part.strip()]
    known = {str(index) for index in range(len(visible))}
    if not indices or not known.issuperset(indices) or len(set(indices)) < len(indices):
        seen = f"numbers from 0 to {len(visible) - 1}, each once" if visible else "nothing: no GPU is visible"
        raise UserError(f"--gpus {brief(asked)}: there can be {seen}; use --workers for the CPU")
    return [visible[int(index)] for index in indices]
