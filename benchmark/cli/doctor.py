"""`bench doctor`: what this machine can run."""

import subprocess
import sys
from pathlib import Path

from invbench.cli.output import echo
from invbench.errors import brief

EXTRAS = {
    "timm": "timm",
    "ray": "ray",
    "slurm": "submitit",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
}


def doctor() -> None:
    """Show packages, devices, data folders and optional parts, each with what to do where it is missing."""
    import importlib.util

    import torch

    from invbench.core.registry import BACKBONES, DATASETS, METHODS
    from invbench.datafiles.release import cache_folder, data_folders
    from invbench.system.provenance import describe

    facts = describe(torch.device("cpu"))
    echo(f"python {facts['python']} on {facts['platform']}")
    echo(f"cpu: {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads")
    echo("packages: " + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            echo(f"cuda:{index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for the CPU"
        echo(f"no GPU is visible ({built}); runs use the CPU")
    echo(f"torchvision: {_torchvision()}")
    for folder in data_folders():
        echo(f"data folder {folder}: {'here' if folder.is_dir() else 'not there yet'}")
    echo(f"cache {cache_folder()}: {_writable(cache_folder())}")
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        echo(f"extra {extra}: {'installed' if there else f'pip install invbench[{extra}]'}")
    for registry in (METHODS, DATASETS, BACKBONES):
        for name, entry in registry.entries().items():
            if entry.literals is None:
                echo(f"{registry.kind} {name}: {entry.summary}")


def _torchvision() -> str:
    """Tell whether torchvision can be imported: at once, or only once its operators are declared."""
    from invbench.system.workarounds import torchvision

    try:
        torchvision()
    except Exception as error:  # whatever a wheel for another torch raises
        return f"does not import ({brief(str(error))}); install it with -c constraints.txt"
    alone = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if alone.returncode == 0:
        return "imports"
    why = brief((alone.stderr.strip().splitlines() or [f"exit status {alone.returncode}"])[-1])
    return f"imports in invbench, but `import torchvision` fails ({why}): it is built for another torch than this one"


def _writable(folder: Path) -> str:
    import os

    existing = next((path for path in (folder, *folder.parents) if os.access(path, os.F_OK)), folder)
    return "writable" if os.access(existing, os.W_OK) else "not writable; set INVBENCH_CACHE"
