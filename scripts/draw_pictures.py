"""Draw pictures to try things with: 4 environments, 7 classes, laid out like PACS (environment/class/picture.jpg).

    python scripts/draw_pictures.py PACS [--each 200] [--size 96]

A class is the direction and the width of stripes. An environment is a style: line drawings, flat colours, soft shades,
noise; and a tint that goes with the class in three of them and with another class in `sketch`, so that colour misleads.
"""

import colorsys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

ENVIRONMENTS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def picture(environment: int, label: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one picture (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    angle, period = np.pi * label / len(CLASSES) + rng.normal(0, 0.05), (3 + label) * rng.uniform(0.9, 1.1)
    wave = np.sin(2 * np.pi * period * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 2 * np.pi))
    shade = [0.5 + 0.4 * wave, (wave > 0).astype(float), 0.5 + 0.3 * wave, 1.0 * (np.abs(wave) > 0.25)][environment]
    hue = ((label + 3 * (environment == 3)) % len(CLASSES)) / len(CLASSES)
    colour = np.array(colorsys.hsv_to_rgb(hue, [0.6, 0.9, 0.4, 0.3][environment], 1.0))
    noise = rng.normal(0, [0.05, 0.02, 0.15, 0.03][environment], (size, size, 3))
    return (255 * np.clip(shade[..., None] * colour + noise, 0, 1)).astype(np.uint8)


def main(
    folder: Path,
    each: Annotated[int, typer.Option(min=1, help="Pictures of a class in an environment.")] = 200,
    size: Annotated[int, typer.Option(min=8, help="Side in pixels.")] = 96,
) -> None:
    """Draw the pictures."""
    rng = np.random.default_rng(0)
    for e, environment in enumerate(ENVIRONMENTS):
        for label, name in enumerate(CLASSES):
            (folder / environment / name).mkdir(parents=True, exist_ok=True)
            for i in range(each):
                image = Image.fromarray(picture(e, label, size, rng))
                image.save(folder / environment / name / f"{i:04}.jpg", quality=85)
    print(f"{folder}: {len(ENVIRONMENTS) * len(CLASSES) * each} pictures")


if __name__ == "__main__":
    typer.run(main)
