"""Trees of small pictures, as users have them."""

from pathlib import Path

import numpy as np
from PIL import Image

ENVIRONMENTS = ("art", "photo", "sketch")
CLASSES = ("cat", "dog")


def write_tree(root: Path, each: int = 12, size: int = 20, environments: tuple[str, ...] = ENVIRONMENTS) -> Path:
    """Write `root/environment/class/picture.png`: cats are bright above, dogs below; environments differ in colour."""
    rng = np.random.default_rng(0)
    for number, environment in enumerate(environments):
        for label, name in enumerate(CLASSES):
            folder = root / environment / name
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 60, (size, size + 4, 3))
                rows = slice(None, size // 2) if label == 0 else slice(size // 2, None)
                pixels[rows, :, number % 3] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root
