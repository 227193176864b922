"""Two cartoon figures, upright or upside down: how far may one turn a picture before its label changes?

Benton et al. (2020), arXiv 2010.11882, section 4.2. Four classes: first figure upright, first flipped, second upright,
second flipped, equally often. An upright figure is turned by an angle ~ U(-π/4, π/4); a flipped one by such an angle
plus or minus π, away from 0, so by more than 3π/4 either way. Bilinear, black outside, corners not aligned. A learned
width of rotation beyond π/2 would mix upright and flipped.

The authors' figures belong to somebody else. Here a gardener and a robot, drawn for this project
(`scripts/draw_sprites.py`), take their places; `sprites` names a file with the authors' arrays `mario` and `iggy`,
(3, 32, 32) with values in [0, 1].

Deviation: angles come from the run's seed, theirs from torch seed 88.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invbench.components.images import rotate
from invbench.core.data import Dataset, Problem, Split, Symmetry, drawn_splits, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Classification
from invbench.datafiles.checksums import is_regular
from invbench.datafiles.npz import read_npz
from invbench.datafiles.release import at_home
from invbench.errors import UserError

CLASSES = ("first upright", "first flipped", "second upright", "second flipped")
SHAPE = (3, 32, 32)
MAX_SPRITES = 1 << 24
"""Most bytes of the file of figures; they have 25,000."""


@register_dataset("mario_iggy")
class MarioIggy(Dataset):
    """Two 32x32 cartoon figures, each upright or flipped."""

    display_name: ClassVar[str] = "Mario & Iggy"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification")
    backbone: ClassVar[str] = "simple_conv"
    citation: ClassVar[str] = "Benton et al., Learning invariances in neural networks, arXiv 2010.11882"
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.train_examples": 40,
        "dataset.test_examples": 20,
        "backbone.width": 2,
        "trainer.batch_size": 20,
    }

    sprites: str | None = setting(None, "path of an .npz with arrays mario and iggy; null takes our own figures")
    train_examples: int = setting(10_000, "training images, a multiple of 4", ge=4, multiple_of=4)
    validation_examples: int = setting(0, "validation images, a multiple of 4", ge=0, multiple_of=4)
    test_examples: int = setting(5_000, "test images, a multiple of 4", ge=4, multiple_of=4)

    def files(self) -> tuple[Path, ...]:
        return (path,) if self.sprites is not None and is_regular(path := at_home(self.sprites)) else ()

    def load(self, seed: np.random.SeedSequence) -> Problem:
        figures = _drawn() if self.sprites is None else _given(at_home(self.sprites))
        sizes = {"train": self.train_examples, "validation": self.validation_examples, "test": self.test_examples}
        splits = drawn_splits(lambda count, rng: _turned(figures, count, rng), sizes, seed)
        symmetry = Symmetry({"rotation": np.pi / 4})  # of all classes
        return Problem(splits, Classification(len(CLASSES)), "image", "synthetic", classes=CLASSES, symmetry=symmetry)


def _turned(figures: Tensor, count: int, rng: np.random.Generator) -> Split:
    """Rotate figures (2, 3, 32, 32) into as many images of each class, in random order."""
    label = rng.permutation(np.arange(count) % len(CLASSES))
    angle = rng.uniform(-np.pi / 4, np.pi / 4, count)
    angle = np.where(label % 2 == 0, angle, angle - np.copysign(np.pi, angle))
    return Split(rotate(figures[torch.from_numpy(label // 2)], floats(angle)), torch.from_numpy(label))


def _drawn() -> Tensor:
    """Draw our figures on black."""
    folder = Path(__file__).parent
    images = [np.asarray(Image.open(folder / f"{name}.png"), np.float32) / 255 for name in ("gardener", "robot")]
    on_black = np.stack([image[..., :3] * image[..., 3:] for image in images])
    return torch.from_numpy(on_black).permute(0, 3, 1, 2).contiguous()


def _given(path: Path) -> Tensor:
    try:
        images = read_npz(path, MAX_SPRITES, ("mario", "iggy")).values()
    except (OSError, ValueError) as error:
        raise UserError(f"dataset.sprites: {path} has no arrays mario and iggy ({error})") from None
    for image in images:
        if image.shape != SHAPE or image.dtype.kind not in "biuf" or not (image.min() >= 0 and image.max() <= 1):
            raise UserError(f"dataset.sprites: figures in {path} must be {SHAPE} with values in [0, 1]")
    return floats(np.stack(list(images)))
