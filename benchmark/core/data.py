"""The data side of the contract: splits, batches, problems, datasets (all plain tensors)."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.core import problem_file
from invbench.core.arrays import converted
from invbench.core.arrays import floats as floats
from invbench.core.examples import Batch as Batch
from invbench.core.examples import PairedTargets as PairedTargets
from invbench.core.examples import Split as Split
from invbench.core.examples import concatenate as concatenate
from invbench.core.examples import drawn_splits as drawn_splits
from invbench.core.examples import group_of as group_of
from invbench.core.image_file import ImageFile
from invbench.core.pixels import AS_THEY_ARE as AS_THEY_ARE
from invbench.core.pixels import Pixels as Pixels
from invbench.core.settings import Settings, setting
from invbench.core.task import Regression, Task, described_task, task_of
from invbench.datafiles.checksums import fingerprint
from invbench.datafiles.release import Release, release
from invbench.errors import UserError
from invbench.system.workarounds import warm_up_vector_math

warm_up_vector_math()  # here, since nothing is computed from data before this module is imported

WRITTEN = ("kind", "variant", "facts", "classes", "environment_names", "metric", "source")
"""Fields of a problem that its file holds as JSON."""
Kind = Literal["vector", "image", "point_cloud"]
Variant = Literal["full", "partial", "synthetic"]


@dataclass(frozen=True)
class LinearLaw:
    """The linear law that a generated problem obeys: E[y | causal inputs] = u · coefficients, where x = u · mixing.

    Args:
        coefficients: (D,), zero for the inputs that are effects of the target.
        causal: which inputs are causes of the target (D,).
        mixing: the matrix that scrambles the inputs (D, D); the identity where None.
    """

    coefficients: Tensor
    causal: Tensor
    mixing: Tensor | None = None


@dataclass(frozen=True)
class Symmetry:
    """The transformations that a problem's targets do not depend on.

    Args:
        half_widths: by generator of images or point clouds, how far from an input to either side the target stays; in
            the generator's units, radians for rotations. π is the whole circle.
        algebra: generators L (k, d, d) on vectors, such that exp(ε L) x has the target of x.
    """

    half_widths: Mapping[str, float] = field(default_factory=dict)
    algebra: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """A dataset made concrete: everything a method may learn from or be judged on.

    Args:
        splits: by name; `train` and `test` always, `validation` and others where they exist. An environment has the
            same number in `validation` as in `train`; one that is not trained on has a number behind those.
        kind: what one input is.
        variant: full (the published data), partial (some of it) or synthetic (drawn from a formula).
        facts: numbers about the construction worth recording, such as a label-noise rate.
        classes: names of the labels, where they have some.
        pixels: how images are standardised.
        augment: random change of training inputs (N, ...), applied to every batch; draws from torch's generator.
        environment_names: names of the environments by their number, where they have some.
        source: texts worth recording about where the data come from, such as the hash of a network.
        law: what a linear model should find, where that is known; its errors are measured then.
        symmetry: what the targets do not depend on, where known; errors of learned ones are measured then.
        metric: what tables show when nothing else is asked for; empty for the task's primary metric on `test`.
        attribute_names: names of the attributes by their number, where they have some.
        training_groups: number of training examples of each group, where the training split does not tell groups.
        examples: what is trained on, where that is not the split `train`.
    """

    splits: Mapping[str, Split]
    task: Task
    kind: Kind
    variant: Variant
    facts: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    pixels: Pixels = AS_THEY_ARE
    environment_names: tuple[str, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)
    augment: Callable[[Tensor], Tensor] | None = None
    law: LinearLaw | None = None
    symmetry: Symmetry | None = None
    metric: str = ""
    attribute_names: tuple[str, ...] = ()
    training_groups: tuple[int, ...] = ()
    examples: Split | None = None

    def __post_init__(self) -> None:
        if not {"train", "test"} <= set(self.splits):
            raise ValueError(f"a problem needs the splits train and test, not {sorted(self.splits)}")

    def __repr__(self) -> str:
        splits = ", ".join(f"{name}={split!r}" for name, split in self.splits.items())
        return f"Problem({self.kind}, {type(self.task).__name__}, {self.variant}, {splits})"

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        *,
        environment: Any = None,
        split: Any = None,
        nuisance: Any = None,
        weight: Any = None,
        attribute: Any = None,
        test_share: float = 0.2,
        seed: int = 0,
    ) -> "Problem":
        """Make a problem from NumPy arrays, tensors, lists, or columns of a data frame.

        >>> import invbench
        >>> x = [[0.0, 1.0], [1.0, 0.5], [0.2, 0.3], [0.9, 0.7]]
        >>> problem = invbench.Problem.from_arrays(
        ...     x, ["cat", "dog", "cat", "dog"], environment=["zoo", "zoo", "home", "home"],
        ...     split=["train", "train", "train", "test"],
        ... )
        >>> problem.task, problem.classes, problem.environments
        (BinaryClassification(outputs=1, primary='accuracy', higher_is_better=True), ('cat', 'dog'), 2)

        Args:
            x: vectors (N, features), or images (N, channels, height, width); bytes of images become 0 to 1.
            y: targets (N,). Real numbers make a regression, with the deviation of the training targets as the unit of
                its loss; integers and texts are classes, in sorted order.
            environment: of each example (N,), numbers or texts. In sorted order, those that are trained on come first.
            split: name of the split of each example (N,): train and test, and others such as validation. Without it
                a share of each environment is drawn for testing.
            nuisance: what predictions should not depend on (N,) or (N, k): real numbers, or categories.
            weight: how often each example is drawn in training, relative to the others of its environment (N,):
                numbers from 0. Draws are with replacement, also where all weights are equal; metrics count every
                example once.
            attribute: what goes with the label in training and need not elsewhere (N,): numbers or texts, whose
                combinations with the classes are the groups that metrics tell apart.
            test_share: of each environment, where no split is given.
            seed: of that draw.

        Raises:
            UserError: shapes that do not fit, missing values, a single class or one that is never trained on, weights
                that are negative or all 0 in a training environment.
        """
        parts = converted(x, y, environment, split, nuisance, weight, attribute, test_share, seed)
        whole = Split(parts.x, parts.y, parts.env, parts.nuisance, weights=parts.weights, attribute=parts.attribute)
        splits = {name: whole.rows(index) for name, index in parts.rows.items()}
        problem = cls(splits, parts.task, parts.kind, "full", classes=parts.classes)
        return replace(problem, environment_names=parts.environment_names, attribute_names=parts.attribute_names)

    def save(self, path: str | Path) -> None:
        """Write the problem, without its symmetry, to a file, which `Problem.load` and the dataset `embedded` read.

        Raises:
            UserError: it has a task of one's own, a random change of inputs, or images in a file.
        """
        if self.augment is not None or self.law is not None:
            raise UserError("a problem with `augment` or `law` cannot be kept in a file; register a dataset instead")
        if any(isinstance(split.x, ImageFile) for split in self.splits.values()):
            raise UserError("these images stay in a file of their own; name their dataset instead of the problem")
        described = self.described() | {
            "provides": self.provides,
            "smallest_environment": _smallest_environment(self.splits["train"]),
            "fingerprint": replace(self).fingerprint,  # of the tensors as they are now
        }
        tensors = {
            f"{name}.{part}": value.detach().cpu().contiguous().clone()  # which may share memory with another
            for name, split in self.splits.items()
            for part, value in split.tensors().items()
        }
        problem_file.write(Path(path), tensors, described)

    def described(self) -> dict[str, Any]:
        """Return what tensors do not tell: task, kind, names and standardisation. Raises UserError as `save` does."""
        described = {name: getattr(self, name) for name in WRITTEN}
        described |= {"attribute_names": self.attribute_names} if self.attribute_names else {}
        return described | {"task": described_task(self.task), "pixels": self.pixels}

    def identity(self) -> str:
        """Return a sha256 of the tensors as they are now, and of what they mean. Raises UserError as `save` does."""
        text = json.dumps([replace(self).fingerprint, self.described()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @staticmethod
    def load(path: str | Path) -> "Problem":
        """Read a problem that `save` has written. Raises UserError where the file is damaged or another one."""
        tensors, described = problem_file.read(Path(path))
        splits: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            split, _, part = name.rpartition(".")
            splits.setdefault(split, {})[part] = value
        try:
            problem = Problem(
                {name: Split(**parts) for name, parts in splits.items()},
                task_of(described["task"]),
                pixels=Pixels(*map(tuple, described["pixels"])),
                **{name: _frozen(described[name]) for name in WRITTEN},
                attribute_names=tuple(described.get("attribute_names", ())),
            )
            expected = described["fingerprint"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise problem_file.no_problem(Path(path), error) from None
        if problem.fingerprint != expected:
            raise UserError(f"{path} is damaged: its data are not those that it was written with; make it again")
        return problem

    @property
    def provides(self) -> list[str]:
        """What the data can offer to methods, in the words of `Dataset.provides`."""
        task = "regression" if isinstance(self.task, Regression) else "classification"
        nuisance = ["nuisance"] if self.splits["train"].nuisance is not None else []
        return [self.kind, task, *(["environments"] if self.environments > 1 else []), *nuisance]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.splits["train"].x.shape[1:])

    @property
    def environments(self) -> int:
        """Number of training environments; 1 where the data have none."""
        env = self.splits["train"].env
        return 1 if env is None else int(env.max()) + 1

    @cached_property
    def attributes(self) -> int:
        """Number of attributes; 0 where no example has one."""
        parts = [split.attribute for split in self.splits.values() if split.attribute is not None and len(split)]
        return max([len(self.attribute_names), *(int(part.max()) + 1 for part in parts)]) if parts else 0

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups by their number: label, attribute."""
        count = max(2, self.task.outputs)
        labels = self.classes or tuple(map(str, range(count)))
        attributes = self.attribute_names or tuple(map(str, range(self.attributes)))
        return tuple(f"{label}, {attribute}" for label in labels for attribute in attributes)

    def groups(self, name: str) -> Tensor | None:
        """Return the group (N,) of each example of a split, label · A + attribute; None where it has no attribute."""
        split = self.splits[name]
        return None if split.attribute is None else group_of(split.y, split.attribute, self.attributes)

    @cached_property
    def group_counts(self) -> dict[str, tuple[int, ...]]:
        """Number of examples of each group, by the splits that tell groups, and `train` in any case."""
        counts = {"train": self.training_groups} if self.training_groups else {}
        for name in self.splits:
            if name not in counts and (groups := self.groups(name)) is not None:
                counts[name] = tuple(torch.bincount(groups, minlength=len(self.group_names)).tolist())
        return counts

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every tensor's name, type, shape and bytes; the device does not matter.

        Where a split has digests of what its inputs were made from, these and the standardisation stand for them.
        """
        arrays = [
            (f"{split}.{name}", value)
            for split, part in sorted(self.splits.items())
            for name, value in _hashed(part, self.pixels).items()
        ]
        source = json.dumps(self.source, sort_keys=True).encode()
        return fingerprint([*arrays, *([("source", np.frombuffer(source, np.uint8))] if self.source else [])])

    @property
    def provenance(self) -> dict[str, Any]:
        """Facts about the data for a record."""
        return {
            "metric": self.metric or f"test_{self.task.primary}",
            "primary": self.task.primary,
            "higher_is_better": self.task.higher_is_better,
            "units": getattr(self.task, "units", ""),
            "variant": self.variant,
            "fingerprint": self.fingerprint,
            "examples": {name: len(split) for name, split in self.splits.items()},
            "environments": self.environments,
            **({"environment_names": list(self.environment_names)} if self.environment_names else {}),
            **({"groups": self._described_groups()} if self.attributes else {}),
            "facts": dict(self.facts),
            **({"source": dict(self.source)} if self.source else {}),
            "constant": self.constant,
        }

    def _described_groups(self) -> dict[str, Any]:
        """Return the names of the groups, and how many examples of each there are in each split."""
        return {"names": list(self.group_names), **{name: list(counts) for name, counts in self.group_counts.items()}}

    @cached_property
    def constant(self) -> dict[str, float]:
        """The task's score on each split of the constant prediction that fits the training targets best, by metric."""
        prediction = self.task.constant(self.splits["train"].y)
        if prediction is None:
            return {}
        scores = {
            name: self.task.scores(prediction.expand(len(split), -1).to(split.x.dtype), split.y)[self.task.primary]
            for name, split in self.splits.items()
        }
        return {f"{name}_{self.task.primary}": score.double().mean().item() for name, score in scores.items()}

    def without_environment(self, number: int) -> "Problem":
        """Move a training environment to split `held_out`; higher environment numbers move down by one.

        Its examples leave the validation split, too, and the split goes where none are left.

        Raises:
            UserError: there is no such environment, or the validation split does not tell its environments.
        """
        train = self.splits["train"]
        if train.env is None or not 0 <= number < self.environments or self.environments < 2:
            have = f"environments 0 to {self.environments - 1}" if self.environments > 1 else "no environments"
            raise UserError(f"trainer.held_out_environment is {number}, but these training data have {have}")
        held_out = replace(train.rows(train.env == number), env=None)
        splits = {**self.splits, "train": _without(train, train.env, number), "held_out": held_out}
        if (validation := splits.get("validation")) is not None:
            if validation.env is None:
                raise UserError(
                    f"trainer.held_out_environment is {number}, but the validation split of these data does not tell "
                    "which of its examples are of that environment; make the data without a validation split"
                )
            splits["validation"] = _without(validation, validation.env, number)
            if not len(splits["validation"]):
                del splits["validation"]
        return replace(self, splits=splits)

    def with_validation(self, share: float, seed: np.random.SeedSequence) -> "Problem":
        """Ensure a validation set: the problem's, else a random share of each training environment, rounded down.

        Args:
            share: 0 to below 1, so that every environment keeps an example for training.
        """
        return self if "validation" in self.splits else self.with_split_off("validation", share, seed)

    def with_split_off(self, name: str, share: float, seed: np.random.SeedSequence) -> "Problem":
        """Divide a random share of each training environment, rounded down, off as another split.

        Args:
            share: 0 to below 1, so that every environment keeps an example for training.
        """
        train = self.splits["train"]
        env = np.zeros(len(train), np.int64) if train.env is None else train.env.numpy()
        sizes = np.bincount(env)
        held_out = np.floor(share * sizes + 1e-9).astype(int)  # 0.29 of 100 are 29, though the product is 28.999...
        if not held_out.any():
            return self
        order = np.random.default_rng(seed).permutation(len(train))
        order = order[np.argsort(env[order], kind="stable")]  # by environment, at random in each
        rank = np.arange(len(train)) - (np.cumsum(sizes) - sizes)[env[order]]
        off = torch.zeros(len(train), dtype=torch.bool)
        off[torch.from_numpy(order)] = torch.from_numpy(rank < held_out[env[order]])
        rest = {other: split for other, split in self.splits.items() if other != "train"}
        splits = {"train": train.rows(~off), name: train.rows(off), **rest}
        return replace(self, splits=splits)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Problem":
        """Move the problem to a device. Fingerprint it before: the type of the numbers is part of that."""
        return replace(self, splits={name: split.to(device, dtype) for name, split in self.splits.items()})


class Dataset(Settings):
    """A recipe for problems: typed settings and one function. One file in `datasets/` each.

    `provides`, `release` and `required_setting` are written as plain literals, so that they can be read without
    importing the file.
    """

    display_name: ClassVar[str] = ""
    """What papers call it, in tables and figures; the registered name where it is empty. A plain literal."""
    provides: ClassVar[tuple[str, ...]] = ()
    """What the data can offer to methods: the kind of input, environments, nuisance, classification, regression."""
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Of these, what is off by default, with the settings that turn it on: for a method that requires it, the engine
    does so where nothing else is asked for."""
    backbone: ClassVar[str] = "mlp"
    """The network that is trained when nothing else is asked for."""
    release: ClassVar[str | Release] = ""
    """The release whose files are needed; empty for data that are generated or bundled."""
    advice: ClassVar[Mapping[str, str]] = {}
    """Of what it provides, the settings that name where it is in the user's data: `dataset.environment=COLUMN`."""
    required_setting: ClassVar[str] = ""
    """Setting that has no default, such as the path of the user's own files: `dataset.root`. A plain literal."""
    licence: ClassVar[str] = "generated by this package (MIT)"
    """Of the data, unless a release tells it."""
    citation: ClassVar[str] = ""
    """Whose construction this is."""
    small: ClassVar[Mapping[str, Any]] = {}
    """Settings by dotted name that make a run on the data take about a second: `invbench.testing` and the tests use
    them. A plain literal."""
    small_when: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """More of them for a method that requires something, by what it requires. A plain literal."""

    validation_share: float = setting(
        0.2, "of each training environment, held out at random as split validation where the data have none", ge=0, lt=1
    )

    def capabilities(self) -> tuple[str, ...]:
        """Return what these settings provide; a dataset with several tasks overrides this."""
        fields = type(self).model_fields
        off = [what for what, how in self.optional.items() if all(getattr(self, k) == fields[k].default for k in how)]
        return tuple(what for what in self.provides if what not in off)

    def environment_choices(self) -> tuple[str, ...]:
        """List the environments that a setting `test_environments` can name; data with such a setting override it."""
        return ()

    def defaults(self) -> dict[str, dict[str, Any]]:
        """Return settings by section for data of which only the files tell what fits; recipes win over them."""
        return {}

    def files(self) -> tuple[Path, ...]:
        """List the local files that these settings read and that may change; empty where there are none."""
        return tuple(release(self.release).locate().values()) if self.release else ()

    @abstractmethod
    def load(self, seed: np.random.SeedSequence) -> Problem:
        """Make the problem on the CPU. All randomness comes from `seed`: equal seeds give equal tensors."""


def _hashed(split: Split, pixels: Pixels) -> dict[str, NDArray[Any]]:
    """Return the arrays that a fingerprint is taken of."""
    arrays = {name: value.cpu().numpy() for name, value in split.tensors().items() if name != "x"}
    if split.digests is not None:
        return arrays | {"standardisation": np.array([*pixels.mean, *pixels.deviation])}
    return {"x": split.inputs().cpu().numpy()} | arrays


def _smallest_environment(train: Split) -> int:
    return len(train) if train.env is None else int(torch.bincount(train.env).min())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _without(split: Split, env: Tensor, number: int) -> Split:
    """Select the examples of all environments but one; higher environment numbers move down by one."""
    kept = env != number
    return replace(split.rows(kept), env=(env - (env > number).to(env.dtype))[kept])


def subset(count: int | None, available: int, what: str) -> int:
    """Return `count`, or all where it is None. Raises UserError when more are asked for than there are."""
    if count is not None and count > available:
        raise UserError(f"{what} is {count}, but there are only {available}; ask for at most that many")
    return available if count is None else count
