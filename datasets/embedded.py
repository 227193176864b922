"""Representations that a network has computed once: vectors in a file that `bench data embed` has written.

Any file that `Problem.save` has written will do. With a frozen network a linear one on its representations is the same
model, trained in a moment.
"""

from pathlib import Path
from typing import ClassVar

from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.datafiles.release import at_home
from invbench.datasets._saved import NETWORKS, Saved
from invbench.errors import UserError


@register_dataset("embedded")
class Embedded(Saved):
    """Your own data as a network's representations, from `bench data embed`."""

    display_name: ClassVar[str] = "Embedded"
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
    required_setting: ClassVar[str] = "dataset.path"
    networks = NETWORKS | {"vector": "linear"}

    path: str | None = setting(None, "file that `bench data embed` or `Problem.save` has written")

    def path_of_file(self) -> Path:
        if self.path is None:
            raise UserError("say where the representations are: --set dataset.path=FILE, from `bench data embed`")
        return at_home(self.path)
