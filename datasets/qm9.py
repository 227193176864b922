"""QM9: quantum-chemical properties of small organic molecules from their geometry.

Ramakrishnan et al. (2014), Scientific Data 1: 133,885 molecules of up to nine heavy atoms (C, N, O, F), of which 3,054
failed a consistency check and are left out where `uncharacterized.txt` is there. The division is that of Anderson et
al.'s Cormorant and of Augerino's experiment (arXiv 2010.11882): a permutation with numpy seed 0, 100,000 training,
17,748 validation, 13,083 test molecules; a part of the data is divided in the same proportions and recorded as partial.

An input is a point cloud (atoms, 4): positions in Å and the nuclear charge, zero-padded: where the charge is 0 there is
no atom (`invbench.components.point_clouds`). Energies are converted with 1 Ha = 27.2114 eV and their errors reported in
meV; from zpve, U0, U, H, G and Cv the values of the free atoms are subtracted (that of zpve is 0). The model predicts
(y - mean) / std of the training targets; its loss is the absolute error.

The archive is parsed once and kept in the cache.

Deviation from Augerino's code: no batch is dropped from validation or test.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from invbench.console import announce
from invbench.core.data import Dataset, Problem, Split, subset
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Regression
from invbench.datafiles.archives import members
from invbench.datafiles.cache import Arrays, cached_arrays
from invbench.datafiles.checksums import read, sha256
from invbench.datafiles.download import required
from invbench.datafiles.release import release
from invbench.errors import UserError

CHARGES = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
COLUMNS = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
HARTREE = 27.2114  # eV
UNITS = {"mu": "D", "alpha": "a0^3", "r2": "a0^2", "Cv": "cal/(mol K)"}
"""All others are energies, in Ha in the files."""
FREE_ATOMS = {  # atomref.txt of the release; energies in Ha, Cv in cal/(mol K); that of zpve is 0
    "U0": {1: -0.500273, 6: -37.846772, 7: -54.583861, 8: -75.064579, 9: -99.718730},
    "U": {1: -0.498857, 6: -37.845355, 7: -54.582445, 8: -75.063163, 9: -99.717314},
    "H": {1: -0.497912, 6: -37.844411, 7: -54.581501, 8: -75.062219, 9: -99.716370},
    "G": {1: -0.510927, 6: -37.861317, 7: -54.598897, 8: -75.079532, 9: -99.733544},
    "Cv": {1: 2.981, 6: 2.981, 7: 2.981, 8: 2.981, 9: 2.981},
}
FULL, TRAIN, TEST_SHARE = 130_831, 100_000, 0.1
MAX_MEMBER, MAX_MEMBERS, MAX_CONTENT, MAX_LIST = 1 << 16, 200_000, 1 << 30, 1 << 24
"""Bytes of a file, files, bytes of all, and of the list of excluded ones; the release has 133,885 of about 2,000."""
MOST_ATOMS, LARGEST, FEWEST = 29, 1e9, 10
"""Atoms of a molecule, numbers, and molecules that can be divided: what is beyond is no part of the release."""
MANY = 1000
"""Molecules that take a second, after which the reader is told what takes so long; a damaged file fails in silence."""
PARSER = "1"
"""Raise it when what is parsed changes."""


@register_dataset("qm9")
class QM9(Dataset):
    """Molecules as point clouds; twelve properties."""

    display_name: ClassVar[str] = "QM9"
    provides: ClassVar[tuple[str, ...]] = ("point_cloud", "regression", "environments")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"environments": {"environments": "size"}}
    backbone: ClassVar[str] = "point_resnet"
    release: ClassVar[str] = "qm9"
    small: ClassVar[Mapping[str, Any]] = {
        "backbone.width": 8,
        "backbone.depth": 2,
        "dataset.smallest_size": 8,
        "trainer.batch_size": 10,
        "trainer.warmup": 0.0,
    }

    target: Literal["mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv"] = setting(
        "homo", "which property"
    )
    free_atoms: bool = setting(True, "subtract the values of the free atoms from zpve, U0, U, H, G and Cv")
    environments: Literal["none", "size"] = setting("none", "whether the number of heavy atoms is the environment")
    smallest_size: int = setting(7, "size: molecules of at most so many heavy atoms share an environment", ge=1, le=8)
    train_size: int | None = setting(None, "use only the first so many training molecules; null takes all", ge=1)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        molecules = _molecules()
        positions, charges = molecules["positions"], molecules["charges"]
        x = torch.from_numpy(np.concatenate([positions, charges[..., None].astype(np.float32)], axis=2))
        y = torch.from_numpy(self._targets(molecules["properties"], charges))
        env = torch.from_numpy(self._sizes(charges)) if self.environments == "size" else None
        whole = Split(x, y, env)
        train, validation, test = divided(len(x))
        train = train[: subset(self.train_size, len(train), "dataset.train_size")]
        splits = {
            name: whole.rows(torch.from_numpy(rows))
            for name, rows in (("train", train), ("validation", validation), ("test", test))
        }
        std, mean = torch.std_mean(splits["train"].y.double())
        if not std > 0:
            raise UserError(f"{len(train)} training molecules with the same {self.target} leave nothing to learn")
        energy = self.target not in UNITS
        task = Regression(
            "meV" if energy else UNITS[self.target], mean.item(), std.item(), "absolute", 1000.0 if energy else 1.0
        )
        full = len(x) == FULL and self.train_size is None
        facts = {"target_mean": mean.item(), "target_std": std.item()}
        return Problem(splits, task, "point_cloud", "full" if full else "partial", facts)

    def _targets(self, properties: NDArray[np.float64], charges: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the property in eV or its own units (N,)."""
        y = properties[:, COLUMNS.index(self.target)]
        if self.free_atoms and self.target in FREE_ATOMS:
            free = np.zeros(max(CHARGES.values()) + 1)
            free[list(FREE_ATOMS[self.target])] = list(FREE_ATOMS[self.target].values())
            y = y - free[charges].sum(1)
        return (y if self.target in UNITS else y * HARTREE).astype(np.float32)

    def _sizes(self, charges: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Number molecules by size: 0 for up to `smallest_size` heavy atoms, then one more for each more."""
        heavy: NDArray[np.int64] = (charges > 1).sum(1)
        return np.maximum(heavy - self.smallest_size, 0)


def divided(count: int) -> list[NDArray[np.int64]]:
    """Divide rows into training, validation and test: the published division of 130,831 molecules, or its shares."""
    order = np.random.RandomState(0).permutation(count)
    train = round(TRAIN * count / FULL)
    return np.split(order, [train, count - int(TEST_SHARE * count)])


def _molecules() -> Arrays:
    """Load positions (N, atoms, 3) in Å, charges (N, atoms), properties (N, 15), in the order of the files."""
    paths = required(release("qm9"))
    archive, excluded = paths["dsgdb9nsd.xyz.tar.bz2"], paths.get("uncharacterized.txt")
    hashes = [sha256(path) if path else "none" for path in (archive, excluded)]
    return cached_arrays("qm9", [PARSER, *hashes], lambda: _parsed(archive, excluded))


def _parsed(archive: Path, excluded: Path | None) -> Arrays:
    left_out = _listed(excluded) if excluded else set()
    atoms, properties = [], []
    with members(archive, MAX_CONTENT, MAX_MEMBERS) as files:
        for file in files:
            if not file.name.endswith(".xyz"):
                continue
            if file.size > MAX_MEMBER:
                raise UserError(f"{file.name} in {archive} has {file.size} bytes; it is not the official one")
            index, values, molecule = parse_xyz(file.content.read().decode("utf-8", "replace"), file.name)
            if index not in left_out:
                properties.append(values)
                atoms.append(molecule)
            if len(atoms) == MANY:
                announce(f"parsing {archive}, once")
    if len(atoms) < FEWEST:
        number = "no" if not atoms else f"only {len(atoms)}"
        raise UserError(f"{archive} holds {number} molecules, fewer than {FEWEST}; delete it and fetch it again")
    if len(atoms) < MANY:
        announce(f"parsing {archive}, once: done")
    padded = np.zeros((len(atoms), max(map(len, atoms)), 4))
    for row, molecule in zip(padded, atoms, strict=True):
        row[: len(molecule)] = molecule
    return {
        "positions": padded[..., 1:].astype(np.float32),
        "charges": padded[..., 0].astype(np.uint8),
        "properties": np.array(properties),
    }


def parse_xyz(text: str, name: str) -> tuple[int, list[float], NDArray[np.float64]]:
    """Parse one file of the release: number, 15 properties, and (atoms, 4): nuclear charge and position in Å.

    The release writes some numbers as `1.0*^-6`.
    """
    lines = text.replace("*^", "e").splitlines()
    try:
        count = int(lines[0])
        _, index, *values = lines[1].split()
        atoms = [line.split()[:4] for line in lines[2 : 2 + count]]
        molecule = np.array([[CHARGES[symbol], *map(float, position)] for symbol, *position in atoms])
        properties = [float(value) for value in values]
        if molecule.shape != (count, 4) or len(properties) != len(COLUMNS):
            raise ValueError("wrong number of values")
        if count > MOST_ATOMS or not np.abs([*molecule.flat, *properties]).max() < LARGEST:  # nor is one NaN
            raise ValueError("values that no molecule of the release has")
        return int(index), properties, molecule
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"{name} in the QM9 archive cannot be parsed ({str(error)[:80]}); fetch it again") from None


def _listed(path: Path) -> set[int]:
    """Read numbers of molecules to leave out: the first word of each line that has a number there."""
    first = re.findall(r"^[ \t]*(\d{1,9})(?!\S)", read(path, MAX_LIST).decode("utf-8", "replace"), re.MULTILINE)
    return {int(word) for word in first}
