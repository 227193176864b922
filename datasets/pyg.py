"""Small graphs of PyTorch Geometric as point clouds: the positions and nuclear charges of their nodes.

    bench run -m erm -d pyg --set dataset.name=QM9 --set dataset.root=data/QM9 --set dataset.target=4

A graph needs positions `pos` (n, 3); its charges are `z` (n,), of H, C, N, O and F, or 1 where it has none. Edges and
other features are left out. Targets `y` that are whole numbers are classes, others real numbers; `dataset.target` says
which of several. Splits are made as in the dataset `torchvision`. An attribute of each graph may be its environment.
The package fetches its datasets by itself where they are not there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.point_clouds import SPECIES
from invbench.core.arrays import are_tested, array_of, drawn, numbered, rows_by_name, task_of
from invbench.core.data import Dataset, Problem, Split
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Task
from invbench.datafiles.release import at_home
from invbench.datasets._packages import class_of, files_of, made_splits, package
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

    def files(self) -> tuple[Path, ...]:
        try:
            return files_of(self._class(), at_home(self.root), [self.arguments, self.splits])
        except UserError:  # `load` says why
            return ()

    def environment_choices(self) -> tuple[str, ...]:
        if self.environment is None:
            return ()
        graphs = [graph for part in self._parts().values() for graph in part]
        return tuple(np.unique(self._environments(graphs)).astype(str).tolist())

    def _class(self) -> type[Any]:
        package("torch_geometric", "pyg")
        from torch_geometric.data import Dataset as Graphs

        return class_of(self.name, "torch_geometric.datasets", Graphs)

    def _parts(self) -> dict[str, Any]:
        return made_splits(self._class(), str(at_home(self.root)), False, self.arguments, self.splits)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        parts = self._parts()
        graphs = [graph for part in parts.values() for graph in part]
        labels = None if self.environment is None else self._environments(graphs)
        names = np.repeat(list(parts), [len(part) for part in parts.values()])
        if self.test_environments:
            if labels is None:
                raise UserError("dataset.test_environments needs dataset.environment, the attribute that has them")
            names = np.where(are_tested(labels.astype(str), self.test_environments), "test", "train")
        divided = self.test_environments or len(parts) > 1
        rng = np.random.default_rng(seed)
        rows = rows_by_name(names) if divided else drawn(len(graphs), labels, self.test_share, rng)
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
        return task_of(array_of("y", np.array(values)), train)

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
    sizes = [graph.num_nodes or 0 for graph in graphs]
    if not all(sizes):
        raise UserError(f"graph {sizes.index(0)} has no nodes")
    if len(graphs) * max(sizes) * 4 > MAX_VALUES:
        raise UserError(f"{len(graphs)} graphs with up to {max(sizes)} nodes are more than {MAX_VALUES} numbers")
    clouds = np.zeros((len(graphs), max(sizes), 4), np.float32)
    for number, (cloud, graph) in enumerate(zip(clouds, graphs, strict=True)):
        positions = getattr(graph, "pos", None)
        if positions is None or positions.shape != (graph.num_nodes, 3):
            raise UserError(
                f"graph {number} has no positions in space, an attribute pos (nodes, 3), which networks here use"
            )
        charges = getattr(graph, "z", None)
        if charges is not None and (charges.shape != (graph.num_nodes,) or not (charges > 0).all()):
            raise UserError(f"graph {number} needs charges z from 1, one of each of its {graph.num_nodes} nodes")
        cloud[: graph.num_nodes, :3] = positions.detach()
        cloud[: graph.num_nodes, 3] = 1 if charges is None else charges
    if not np.isfinite(clouds).all():
        raise UserError("a position is missing or infinite")
    if odd := set(np.unique(clouds[..., 3]).tolist()) - {0.0, *SPECIES}:
        known = ", ".join(map(str, SPECIES))
        raise UserError(f"a node has the charge {min(odd):g}; networks here know atoms of charges {known}")
    return clouds
