"""Groups, which are examples of one label and one attribute; and who may know the attribute.

An attribute goes with the label in training and need not elsewhere, such as the background of a bird. There are
K · A groups of K labels and A attributes: group = label · A + attribute.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from invbench.core.arrays import numbered
from invbench.core.data import Dataset, Problem, Split, group_of
from invbench.core.settings import setting
from invbench.core.task import Regression
from invbench.errors import UserError

SECOND_STAGE = "second_stage"
"""Name of the split of training examples that are set aside for a second stage."""
NEARLY = 0.98
"""Share of the attributes from which on values tell the attribute."""
Told = Literal["train", "validation"]
Part = Literal["attribute", "env", "nuisance"]


class GroupedDataset(Dataset):
    """Dataset whose examples may have an attribute. `load` gives it; these settings say what is made of it."""

    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {SECOND_STAGE: {"second_stage_share": 0.2}}
    advice: ClassVar[Mapping[str, str]] = {"environments": "dataset.environment_from=group"}

    second_stage_share: float = setting(
        0.0,
        "of each training environment, set aside at random as split second_stage, for methods that train a head on "
        "what its body has not seen",
        ge=0,
        lt=1,
    )
    attribute_known: tuple[Told, ...] = setting(
        ("train", "validation"),
        "splits of which methods and the choice of settings may know the attribute; without, groups are classes. "
        "Test metrics of groups always have it",
    )
    attribute_from: Literal["data", "environment", "nuisance", "none"] = setting(
        "data", "what the attribute is; none: the same for all, so that groups are classes"
    )
    environment_from: Literal["data", "attribute", "group", "nuisance"] = setting(
        "data", "what the environments are; of what only training knows, validation has none"
    )
    nuisance_from: Literal["data", "attribute", "environment"] = setting("data", "what the nuisance is")

    def capabilities(self) -> tuple[str, ...]:
        """Return what these settings provide, where the nuisance is the attribute."""
        return self.told({"environments": "environments" not in self.optional, "nuisance": self.tells_attribute})

    @property
    def tells_attribute(self) -> bool:
        """Whether methods may know the attribute."""
        return "train" in self.attribute_known

    def told(self, there: Mapping[str, bool]) -> tuple[str, ...]:
        """Select of what the class provides what these data have, or what these settings make of something else."""
        there = {**there, SECOND_STAGE: self.second_stage_share > 0}
        made = {"environments": self.environment_from != "data", "nuisance": self.nuisance_from != "data"}
        return tuple(what for what in self.provides if there.get(what, True) or made.get(what, False))


class GroupsAlone(GroupedDataset):
    """Dataset with groups and no other environments: a method that needs some gets the groups."""

    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **GroupedDataset.optional,
        "environments": {"environment_from": "group"},
    }


def arranged(problem: Problem, data: GroupedDataset) -> Problem:
    """Make attributes, nuisances and environments of each other, as the settings say.

    Raises:
        UserError: the data lack what something is made of, or training may not know what its environments would be.
    """
    if data.attribute_from != "data":
        problem = _with_attribute(problem, data.attribute_from)
    if problem.attributes and isinstance(problem.task, Regression):
        raise UserError("an attribute makes groups with labels, and this dataset is a regression")
    if problem.attributes and not problem.attribute_names:
        problem = replace(problem, attribute_names=tuple(map(str, range(problem.attributes))))
    if data.environment_from != "data":
        problem = _with_environments(problem, data)
    if data.nuisance_from != "data":
        part: Part = "attribute" if data.nuisance_from == "attribute" else "env"
        parts = _parts(problem, part, f"dataset.nuisance_from={data.nuisance_from}")
        splits = {name: replace(split, nuisance=parts[name]) for name, split in problem.splits.items()}
        problem = replace(problem, splits=splits)
    return problem


def with_hidden_attributes(problem: Problem, data: GroupedDataset) -> Problem:
    """Take from the splits that may not know the attribute what tells it: it, and nuisances or environments that do."""
    if not problem.attributes:
        return problem
    splits = dict(problem.splits)
    hidden = {"train", "validation"} - set(data.attribute_known)
    hidden |= {SECOND_STAGE} if "train" in hidden else set()
    are_classes = data.environment_from == "group" and "train" in hidden
    env_is = data.environment_from in ("attribute", "group") or data.attribute_from == "environment"
    nuisance_is = data.nuisance_from == "attribute" or data.attribute_from == "nuisance"
    for name in hidden & splits.keys():
        split = splits[name]
        if split.attribute is not None:
            tells_env = not are_classes and (env_is or _tells(split.env, split))
            nuisance = None if nuisance_is or _tells(split.nuisance, split) else split.nuisance
            splits[name] = replace(split, attribute=None, nuisance=nuisance, env=None if tells_env else split.env)
    return replace(problem, splits=splits, training_groups=problem.group_counts.get("train", ()))


def _tells(values: Tensor | None, split: Split) -> bool:
    """Tell whether values (N, ...) have the attribute in a column, or with the label have one for nearly all examples.

    Of values of which there are more than half as many different ones as examples nothing can be told.
    """
    attribute = split.attribute
    if values is None or attribute is None or len(attribute.unique()) < 2:
        return False
    columns = values.reshape(len(values), -1)
    labels = split.y.reshape(-1, 1).to(torch.float64)
    if any(torch.equal(column, attribute.to(column.dtype)) for column in columns.T):
        return True
    for told in (columns, *columns.T[:, :, None]):
        cells = torch.cat([labels, told.to(torch.float64)], 1).unique(dim=0, return_inverse=True)[1]
        few = 2 * (int(cells.max()) + 1) <= len(cells)
        if few and _predicted(cells, attribute) > max(NEARLY, _predicted(labels[:, 0].long(), attribute)):
            return True
    return False


def _predicted(cells: Tensor, attribute: Tensor) -> float:
    """Return the share of examples that have the attribute which is the most frequent one of their cell."""
    counts = torch.zeros(int(cells.max()) + 1, int(attribute.max()) + 1, dtype=torch.int64)
    counts.index_put_((cells, attribute), torch.ones_like(attribute), accumulate=True)
    return int(counts.amax(1).sum()) / len(cells)


def _with_attribute(problem: Problem, source: Literal["environment", "nuisance", "none"]) -> Problem:
    if source == "none":
        same = {name: torch.zeros(len(split), dtype=torch.int64) for name, split in problem.splits.items()}
        return _replaced(problem, same, ("all",))
    part: Part = "env" if source == "environment" else "nuisance"
    names = problem.environment_names if source == "environment" else ()
    return _replaced(problem, _parts(problem, part, f"dataset.attribute_from={source}"), names)


def _replaced(problem: Problem, attributes: Mapping[str, Tensor], names: tuple[str, ...]) -> Problem:
    splits = {name: replace(split, attribute=attributes[name]) for name, split in problem.splits.items()}
    return replace(problem, splits=splits, attribute_names=names)


def _with_environments(problem: Problem, data: GroupedDataset) -> Problem:
    """Make environments of attributes, groups or nuisances; those that are trained on have the first numbers."""
    source, named = data.environment_from, problem.splits.items()
    setting_ = f"dataset.environment_from={source}"
    if source == "group" and "train" not in data.attribute_known:
        numbers = {name: split.y.long() for name, split in named}
        names = problem.classes
    elif source == "group":
        attributes = _parts(problem, "attribute", setting_)
        numbers = {name: group_of(split.y, attributes[name], problem.attributes) for name, split in named}
        names = problem.group_names
    else:
        numbers = _parts(problem, "attribute" if source == "attribute" else "nuisance", setting_)
        train = problem.splits["train"].attribute
        is_attribute = train is not None and torch.equal(train, numbers["train"])
        if is_attribute and "train" not in data.attribute_known:
            raise UserError(f"{setting_}, but training may not know it by dataset.attribute_known; change one of them")
        names = problem.attribute_names if source == "attribute" else ()
    whole = np.concatenate([numbers[name].numpy() for name in problem.splits])
    rows = np.arange(len(problem.splits["train"])) + _offset(problem, "train")
    env, order = numbered(whole, rows)
    parts = dict(zip(problem.splits, env.split([len(split) for split in problem.splits.values()]), strict=True))
    splits = {name: replace(split, env=parts[name]) for name, split in named}
    texts = tuple(names[int(number)] if names else number for number in order)
    return replace(problem, splits=splits, environment_names=texts)


def _offset(problem: Problem, name: str) -> int:
    """Return the number of examples of the splits ahead of one."""
    names = list(problem.splits)
    return sum(len(problem.splits[other]) for other in names[: names.index(name)])


def _parts(problem: Problem, part: Part, setting_: str) -> dict[str, Tensor]:
    """Return categories (N,) of each split. Raises UserError where a split has none, or other than categories."""
    words = {"attribute": "attribute", "env": "environments", "nuisance": "nuisance"}[part]
    parts: dict[str, Tensor] = {}
    for name, split in problem.splits.items():
        values = getattr(split, part)
        if values is None:
            raise UserError(f"{setting_}, but the split {name} of these data has no {words}")
        if values.ndim != 1 or values.is_floating_point():
            raise UserError(f"{setting_} takes one column of categories, and the {words} of these data are numbers")
        parts[name] = values.long()
    return parts
