"""Data given in Python: a `Problem` that `invbench.run` or `invbench.sweep` was called with, kept in the cache."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from invbench.core.data import Problem
from invbench.core.problem_file import path_in_cache
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.datafiles.checksums import is_regular
from invbench.datasets._saved import Saved
from invbench.errors import UserError


@register_dataset("arrays")
class Arrays(Saved):
    """Your own arrays, from a notebook or script: `invbench.run(method, problem)`."""

    display_name: ClassVar[str] = "Arrays"
    provides: ClassVar[tuple[str, ...]] = (
        "vector",
        "image",
        "point_cloud",
        "classification",
        "regression",
        "environments",
        "nuisance",
        "second_stage",
    )
    required_setting: ClassVar[str] = "dataset.fingerprint"

    fingerprint: str = setting("", "sha256 of the data and of what they mean, `Problem.identity`")

    def path_of_file(self) -> Path:
        path = path_in_cache(self.fingerprint)
        if not self.fingerprint:
            raise UserError("dataset arrays is for problems made in Python: invbench.run(method, problem)")
        if not is_regular(path):
            raise UserError(
                f"the data of this run were given in Python and are not in {path.parent} any more; call invbench.run "
                "with the same problem again"
            )
        return path

    def load(self, seed: np.random.SeedSequence) -> Problem:
        path = self.path_of_file()
        try:
            return super().load(seed)
        except UserError:
            path.unlink(missing_ok=True)
            raise UserError(f"{path} was damaged; call invbench.run with the same problem again") from None
