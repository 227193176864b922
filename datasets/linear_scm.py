"""A linear structural causal model: a random graph, with interventions of known strength in known places.

The inputs and the target are nodes of a random directed acyclic graph, with the target in the middle of its order. Node
j is

    v_j = Σ_i B_ij v_i + Σ_k C_kj h_k + s Σ_q M_qj a_q + intervention_j + N

over its parents i, hidden confounders h ~ N(0, I) and anchors a ~ N(0, I). Two nodes have an edge with a given
probability; the target has one parent and one child at least. Coefficients are ±U(0.5, 1.5), those of confounders and
anchors N(0, 1).

Environment 0 has no intervention. Every other one intervenes on a random share of the inputs, never on the target:

    mean    a constant N(0, s²) is added, drawn once for each input and environment
    noise   s N(0, 1) is added, drawn for each example

with s the strength. Test environments intervene on all inputs, with a strength of their own, and are drawn anew.
Anchors are continuous and given to methods as the nuisance; there s is the strength of their effect, too. For an oracle
all inputs that are no causes are shuffled in training, within each environment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from invbench.core.data import Dataset, LinearLaw, Problem, Split, concatenate, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Regression
from invbench.datasets._linear import Array
from invbench.seeding import children


@register_dataset("linear_scm")
class LinearSCM(Dataset):
    """Random linear graph with interventions: causes of the target, its effects, hidden confounders, anchors."""

    display_name: ClassVar[str] = "Linear SCM"
    provides: ClassVar[tuple[str, ...]] = ("vector", "environments", "regression", "nuisance", "oracle")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"nuisance": {"anchors": 2}, "oracle": {"oracle": True}}
    backbone: ClassVar[str] = "linear"
    citation: ClassVar[str] = "this package; the model of Peters et al., arXiv 1501.01332, section 2"
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.examples": 40,
        "dataset.test_examples": 20,
        "trainer.batch_size": None,
    }

    inputs: int = setting(6, "number of inputs", ge=2, le=2000)
    edge_probability: float = setting(0.5, "of an edge between two nodes", ge=0, le=1)
    environments: int = setting(3, "training environments, the first of them without interventions", ge=1, le=10_000)
    intervention: Literal["mean", "noise"] = setting("mean", "what an intervention changes")
    strength: float = setting(1.0, "s: standard deviation of interventions", ge=0)
    intervened: float = setting(1.0, "share of the inputs that an environment intervenes on", ge=0, le=1)
    confounders: int = setting(0, "hidden variables that affect all nodes", ge=0, le=1000)
    anchors: int = setting(0, "continuous anchors, which affect all inputs and are the nuisance", ge=0, le=1000)
    test_strength: float = setting(3.0, "s of the test environments", ge=0)
    oracle: bool = setting(False, "shuffle the inputs that are no causes in training, so that ERM is the oracle")
    examples: int = setting(500, "training examples per environment, and as many for validation", ge=2)
    test_examples: int = setting(500, "test examples per environment", ge=2)

    def capabilities(self) -> tuple[str, ...]:
        nuisance, oracle = ("nuisance",) if self.anchors else (), ("oracle",) if self.oracle else ()
        return ("vector", "environments", "regression", *nuisance, *oracle)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        structure, *streams = children(seed, 5)
        graph = random_graph(self, np.random.default_rng(structure))
        rng = np.random.default_rng(streams[0])
        trained = [self._intervention(e, rng) for e in range(self.environments)]
        unseen = [self._shift(np.ones(self.inputs, dtype=bool), self.test_strength, rng) for _ in trained]
        train, validation = (
            self._split(graph, trained, self.examples, np.random.default_rng(child))
            for child in children(streams[1], 2)
        )
        test = self._split(graph, unseen, self.test_examples, np.random.default_rng(streams[2]))
        weights = graph.edges[graph.inputs, graph.target]
        if self.oracle:
            train = _shuffled(train, weights == 0, np.random.default_rng(streams[3]))
        splits = {"train": train, "validation": validation, "test": test}
        law = LinearLaw(torch.from_numpy(weights), torch.from_numpy(weights != 0))
        task = Regression("units of y", primary="mean_squared_error")
        facts = {"causes": float((weights != 0).sum())}
        return Problem(splits, task, "vector", "synthetic", facts, law=law, metric="coefficient_error_causal")

    def _intervention(self, environment: int, rng: np.random.Generator) -> "Shift":
        """Draw what a training environment adds to the inputs."""
        count = round(self.intervened * self.inputs) if environment else 0
        where = rng.permutation(self.inputs) < count
        return self._shift(where, self.strength, rng)

    def _shift(self, where: NDArray[np.bool_], strength: float, rng: np.random.Generator) -> "Shift":
        mean = where * strength * rng.normal(size=self.inputs)
        noise = np.where(where, strength, 0.0)
        return Shift(mean, 0 * noise) if self.intervention == "mean" else Shift(0 * mean, noise)

    def _split(self, graph: "Graph", shifts: list["Shift"], count: int, rng: np.random.Generator) -> Split:
        return concatenate([self._examples(graph, shift, e, count, rng) for e, shift in enumerate(shifts)])

    def _examples(self, graph: "Graph", shift: "Shift", e: int, count: int, rng: np.random.Generator) -> Split:
        nodes = self.inputs + 1
        anchors = rng.normal(size=(count, self.anchors))
        added = np.zeros((count, nodes))
        added[:, graph.inputs] = shift.mean + shift.noise * rng.normal(size=(count, self.inputs))
        added[:, graph.inputs] += self.strength * anchors @ graph.of_anchors
        noise = rng.normal(size=(count, nodes)) + rng.normal(size=(count, self.confounders)) @ graph.of_confounders
        values = graph.solved(noise + added)
        return Split(
            floats(values[:, graph.inputs]),
            floats(values[:, graph.target]),
            torch.full((count,), e),
            nuisance=floats(anchors) if self.anchors else None,
        )


def _shuffled(split: Split, columns: NDArray[np.bool_], rng: np.random.Generator) -> Split:
    """Shuffle some columns of the inputs within each environment, all by one permutation."""
    x = split.inputs().clone()
    for rows in split.environment_rows:
        others = rows[torch.from_numpy(rng.permutation(len(rows)))]
        x[rows[:, None], np.flatnonzero(columns)] = x[others[:, None], np.flatnonzero(columns)]
    return replace(split, x=x)


@dataclass(frozen=True)
class Shift:
    """What an environment adds to the inputs (D,): a constant, and noise of this standard deviation."""

    mean: Array
    noise: Array


@dataclass(frozen=True)
class Graph:
    """Graph over D + 1 nodes, in an order in which effects come after their causes.

    Args:
        edges: B (D + 1, D + 1); row i has the effects of node i, above the diagonal.
        target: which node is the target.
        inputs: the others (D,), in a random order, so that the place of an input tells nothing.
        of_confounders: (H, D + 1).
        of_anchors: (Q, D), on the inputs.
    """

    edges: Array
    target: int
    inputs: Array
    of_confounders: Array
    of_anchors: Array

    def solved(self, noise: Array) -> Array:
        """Return the nodes' values (N, D + 1) from what does not come from their parents."""
        return np.asarray(np.linalg.solve(np.eye(len(self.edges)) - self.edges.T, noise.T).T)


def random_graph(data: LinearSCM, rng: np.random.Generator) -> Graph:
    """Draw the graph and its coefficients."""
    nodes, target = data.inputs + 1, (data.inputs + 1) // 2
    linked = np.triu(rng.random((nodes, nodes)) < data.edge_probability, 1)
    linked[rng.integers(target), target] = linked[target, rng.integers(target + 1, nodes)] = True
    sizes = rng.uniform(0.5, 1.5, (nodes, nodes)) * rng.choice([-1, 1], (nodes, nodes))
    return Graph(
        edges=linked * sizes,
        target=target,
        inputs=rng.permutation(np.delete(np.arange(nodes), target)),
        of_confounders=rng.normal(size=(data.confounders, nodes)),
        of_anchors=rng.normal(size=(data.anchors, data.inputs)),
    )
