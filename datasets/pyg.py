"""Small graphs of PyTorch Geometric as point clouds: the positions and nuclear charges of their nodes.

    bench run -m erm -d pyg --set dataset.name=QM9 --set dataset.root=data/QM9 --set dataset.target=4

A graph needs positions `pos` (n, 3); its charges are `z` (n,), or 1 where it has none. Edges and other features are
left out. Targets `y` that are whole numbers are classes, others real numbers; `dataset.target` says which of several.
Splits are made as in the dataset `torchvision`. An attribute of each graph may be its environment.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.point_clouds import SPECIES
from invbench.core.arrays import (
    array_of,
    check_precision,
    class_targets,
    classification,
    drawn,
    numbered,
    regression,
    rows_by_name,
)
from invbench.core.data import Dataset, Problem, Split, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Task
from invbench.datafiles.release import at_home
from invbench.datasets._packages import class_of, made_splits, package
from invbench.errors import UserError, brief

MAX_VALUES = 1 << 28
"""Most numbers of all point clouds together, 4 bytes each."""


@register_dataset("pyg")
class PyG(Dataset):
    """Graphs with positions of PyTorch Geometric, or of your own class; needs the extra `pyg`."""

    display_name: ClassVar[str] = "PyG"
    provides: ClassVar[tuple[str, ...]] = ("point_cloud", "classification", "regression", "environments")
    advice: ClassVar[Mapping[str, str]] = {"environments": "dataset.environment=ATTRIBUTE"}
    required_setting: ClassVar[str] = "dataset.name"
    licence: ClassVar[str] = "that of the dataset"
    citation: ClassVar[str] = "the dataset's own paper, see pytorch-geometric.readthedocs.io"

    name: str = setting(..., "of a class of torch_geometric.datasets, or module:Class of your own; required")
    root: str = setting("data", "argument root of the class")
    arguments: dict[str, Any] = setting({}, "further ones of the class")
    splits: dict[str, dict[str, Any]] = setting({}, "arguments of each split; empty: as the class calls them")
    target: int = setting(0, "which of several targets is predicted, from 0", ge=0)
    environment: str | None = setting(None, "attribute of each graph that has its environment")
    test_environments: tuple[str | int, ...] = setting((), "environments that are tested on and not trained on")
    test_share: float = setting(
        0.2, "of each environment, drawn for the test where nothing else says what is", gt=0, lt=1
    )

    def capabilities(self) -> tuple[str, ...]:
        return tuple(what for what in self.provides if what != "environments" or self.environment is not None)

    def defaults(self) -> dict[str, dict[str, Any]]:
        return {
            "backbone": {"name": "deep_sets"},
            "trainer": {"steps": 2000, "batch_size": 32, "optimizer": "adam", "learning_rate": 1e-3},
        }

    def load(self, seed: np.random.SeedSequence) -> Problem:
        package("torch_geometric", "pyg")
        from torch_geometric.data import Dataset as Graphs

        cls = class_of(self.name, "torch_geometric.datasets", Graphs)
        parts = made_splits(cls, str(at_home(self.root)), False, self.arguments, self.splits)
        graphs = [graph for part in parts.values() for graph in part]
        labels = None if self.environment is None else self._environments(graphs)
        rng = np.random.default_rng(seed)
        names = np.repeat(list(parts), [len(part) for part in parts.values()])
        rows = rows_by_name(names) if len(parts) > 1 else drawn(len(graphs), labels, self.test_share, rng)
        task, y, classes = self._targets(graphs, rows["train"])
        env, environment_names = (None, ()) if labels is None else numbered(labels, rows["train"])
        whole = Split(torch.from_numpy(_clouds(graphs)), y, env)
        splits = {name: whole.rows(torch.from_numpy(index)) for name, index in rows.items()}
        return Problem(splits, task, "point_cloud", "full", classes=classes, environment_names=environment_names)

    def _targets(self, graphs: list[Any], train: NDArray[np.int64]) -> tuple[Task, Tensor, tuple[str, ...]]:
        values = []
        for number, graph in enumerate(graphs):
            y = np.asarray(getattr(graph, "y", None) if getattr(graph, "y", None) is not None else []).ravel()
            if not self.target < y.size:
                raise UserError(
                    f"dataset.target is {self.target}, but graph {number} has {y.size} targets; count from 0"
                )
            values.append(y[self.target])
        y = array_of("y", np.array(values))
        if y.dtype.kind == "f":
            check_precision("y", y)
            return regression(y, train), floats(y), ()
        names, codes = np.unique(y, return_inverse=True)
        classes = tuple(map(str, names.tolist()))
        return classification(classes, codes, train), class_targets(classes, codes), classes

    def _environments(self, graphs: list[Any]) -> NDArray[Any]:
        """Return the environment of each graph (N,)."""
        name = self.environment or ""
        values = [np.asarray(graph[name]).ravel() if name in graph else np.empty(0) for graph in graphs]
        for number, value in enumerate(values):
            if value.size != 1:
                raise UserError(f"dataset.environment: graph {number} has {value.size} values of {brief(name)}, not 1")
        return array_of("dataset.environment", np.concatenate(values))


def _clouds(graphs: list[Any]) -> NDArray[np.float32]:
    """Return positions and charges of all nodes, zero-padded: (N, nodes, 4)."""
    sizes = [graph.num_nodes for graph in graphs]
    if len(graphs) * max(sizes) * 4 > MAX_VALUES:
        raise UserError(f"{len(graphs)} graphs with up to {max(sizes)} nodes are more than {MAX_VALUES} numbers")
    clouds = np.zeros((len(graphs), max(sizes), 4), np.float32)
    for number, (cloud, graph) in enumerate(zip(clouds, graphs, strict=True)):
        positions = getattr(graph, "pos", None)
        if positions is None or positions.shape != (graph.num_nodes, 3):
            raise UserError(
                f"graph {number} has no positions in space, an attribute pos (nodes, 3), which networks here use"
            )
        cloud[: graph.num_nodes, :3] = positions
        cloud[: graph.num_nodes, 3] = graph.z if getattr(graph, "z", None) is not None else 1
    if not np.isfinite(clouds).all():
        raise UserError("a position is missing or infinite")
    if odd := set(np.unique(clouds[..., 3]).tolist()) - {0.0, *SPECIES}:
        known = ", ".join(map(str, SPECIES))
        raise UserError(f"a node has the charge {min(odd):g}; networks here know atoms of charges {known}")
    return clouds
