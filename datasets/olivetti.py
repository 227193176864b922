"""Olivetti faces, turned: which way up is a face, or whose is it whichever way it is turned?

400 photographs of 40 people, 64x64 (Samaria & Harter 1994), each repeated 30 times, turned by an angle ~ U(-90°, 90°)
about its centre, of which the central 45x45 = int(64 / √2) pixels are kept: the largest square inside every rotation.

    task rotation   predict the angle in degrees (Benton et al. 2020, arXiv 2010.11882): 30 people train, 10 test, drawn
                    by the run's seed, 9,000 and 3,000 images; the target is not standardised
    task identity   name the person, the angle (in radians) is the nuisance: of each person's 10 photographs 6 train,
                    2 validate and 2 test, drawn by the run's seed

Deviations from the authors' code: rotation by bilinear sampling in torch, directly on the 45x45 grid, not by OpenCV on
an enlarged canvas that is cropped to whole pixels; people and angles are seeded.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.images import rotate
from invbench.core.data import Dataset, Problem, Split, floats, subset
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Classification, Regression
from invbench.datafiles.checksums import read
from invbench.datafiles.download import required
from invbench.datafiles.release import release
from invbench.datasets._matlab import read_matrix
from invbench.errors import UserError

SIDE, WINDOW = 64, 45
PEOPLE, PHOTOGRAPHS = 40, 10
TEST_PEOPLE = 10
MAX_FILE = 1 << 24
"""Most bytes of the file; its pixels need 13 million as MATLAB's widest numbers."""
OF_EACH_PERSON = {"train": 6, "validation": 2, "test": 2}


@register_dataset("olivetti")
class Olivetti(Dataset):
    """45x45 faces at random angles: tell the angle, or the person."""

    display_name: ClassVar[str] = "Olivetti faces"
    provides: ClassVar[tuple[str, ...]] = ("image", "regression", "classification", "nuisance")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "classification": {"task": "identity"},
        "nuisance": {"task": "identity"},
    }
    backbone: ClassVar[str] = "simple_conv"
    release: ClassVar[str] = "olivetti"
    citation: ClassVar[str] = "turned as in Benton et al., arXiv 2010.11882"
    small: ClassVar[Mapping[str, Any]] = {"dataset.copies": 1, "backbone.width": 2, "trainer.batch_size": 20}

    task: Literal["rotation", "identity"] = setting("rotation", "regress the angle, or classify the person")
    copies: int = setting(30, "how often each photograph is used, every time at another angle", ge=1)
    max_rotation: float = setting(90.0, "angles are uniform between minus and plus this, in degrees", ge=0, le=180)
    validation_people: int = setting(0, "rotation: how many of the 30 training people are held out", ge=0, le=29)

    def capabilities(self) -> tuple[str, ...]:
        return ("image", "regression") if self.task == "rotation" else ("image", "classification", "nuisance")

    def load(self, seed: np.random.SeedSequence) -> Problem:
        faces = _faces()
        rng = np.random.default_rng(seed)
        rows = self._by_people(rng) if self.task == "rotation" else _by_photographs(rng)
        splits = {name: self._turned(faces, index, rng) for name, index in rows.items() if len(index)}
        task = Regression("degrees") if self.task == "rotation" else Classification(PEOPLE)
        return Problem(splits, task, "image", "full")

    def _by_people(self, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
        """Divide photographs (N,) by disjoint groups of people."""
        people = rng.permutation(PEOPLE)
        train = PEOPLE - TEST_PEOPLE - subset(self.validation_people, PEOPLE - TEST_PEOPLE, "dataset.validation_people")
        groups = dict(zip(OF_EACH_PERSON, np.split(people, [train, PEOPLE - TEST_PEOPLE]), strict=True))
        return {name: (group[:, None] * PHOTOGRAPHS + np.arange(PHOTOGRAPHS)).ravel() for name, group in groups.items()}

    def _turned(self, faces: Tensor, index: NDArray[np.int64], rng: np.random.Generator) -> Split:
        """Rotate every photograph of the index to `copies` angles."""
        index = np.repeat(index, self.copies)
        degrees = floats(rng.uniform(-self.max_rotation, self.max_rotation, len(index)))
        x = rotate(faces[torch.from_numpy(index)], torch.deg2rad(degrees), WINDOW)
        if self.task == "rotation":
            return Split(x, degrees)
        return Split(x, torch.from_numpy(index // PHOTOGRAPHS), nuisance=torch.deg2rad(degrees))


def _by_photographs(rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Divide photographs (N,) such that every person is in every split."""
    order = rng.permuted(np.tile(np.arange(PHOTOGRAPHS), (PEOPLE, 1)), axis=1)
    photographs = np.arange(PEOPLE)[:, None] * PHOTOGRAPHS + order
    parts = np.split(photographs, np.cumsum(list(OF_EACH_PERSON.values()))[:-1], axis=1)
    return {name: part.ravel() for name, part in zip(OF_EACH_PERSON, parts, strict=True)}


def _faces() -> Tensor:
    """Load all photographs (400, 1, 64, 64) with pixels in [0, 1]; person i has rows 10 i to 10 i + 9."""
    path = required(release("olivetti"))["olivettifaces.mat"]
    try:
        faces = read_matrix(read(path, MAX_FILE), "faces", (SIDE * SIDE, PEOPLE * PHOTOGRAPHS))
    except ValueError as error:
        raise UserError(f"{path} is not the Olivetti file ({error}); fetch it again") from None
    if not (faces.min() >= 0 and faces.max() <= 255):
        raise UserError(f"{path} is not the Olivetti file (pixels must be 0 to 255); fetch it again")
    images = faces.T.reshape(-1, SIDE, SIDE).transpose(0, 2, 1)  # pixels are kept column by column
    return floats(np.ascontiguousarray(images))[:, None] / 255
