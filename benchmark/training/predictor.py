"""Train a method on arrays and keep the model: for people who want predictions and not a table."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from invbench.components.eval_mode import eval_mode
from invbench.core.arrays import array_of, check_lengths, inputs_of
from invbench.core.data import Kind, Problem, Split
from invbench.core.groups import SECOND_STAGE
from invbench.core.problem_file import named_errors
from invbench.core.registry import METHODS, unmet
from invbench.core.stages import provided_by
from invbench.core.task import BinaryClassification, Classification, Regression, Task, described_task, task_of
from invbench.datafiles.checksums import fingerprint
from invbench.errors import UserError
from invbench.evaluation.metrics import outputs_of
from invbench.files import replacing
from invbench.runs.given import DATASET
from invbench.runs.resolve import RunConfig, without_data
from invbench.runs.spec import RunSpec
from invbench.seeding import stream, torch_stream
from invbench.training.build import model_on
from invbench.training.restored import load_run
from invbench.training.runner import run

FORMAT = "invbench predictor 1"


@dataclass(frozen=True)
class Predictor:
    """Trained model on arrays, in the manner of scikit-learn.

    Args:
        model: in evaluation mode, on the CPU.
        config: of the run that trained it.
        problem: shapes, task and names of the classes; it has no examples.
        feature_names: columns of the data frame that it was trained on; empty where it was none.
    """

    model: nn.Module
    config: RunConfig
    problem: Problem
    feature_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Predictor({self.config.title}, {self.problem!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of `predict_proba`; empty for a regression."""
        return self.problem.classes

    def predict(self, x: Any) -> NDArray[Any]:
        """Predict the names of the classes (N,) as texts, or the targets (N,) of a regression.

        Raises:
            UserError: the inputs have another shape than those of the training, or missing values.
        """
        task = self.problem.task
        if isinstance(task, Regression):
            values: NDArray[np.float64] = (self._outputs(x)[:, 0] * task.std + task.mean).numpy()
            return values
        names: NDArray[Any] = np.array(self.classes)[self.predict_proba(x).argmax(1)]
        return names

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        """Predict the probability of each class (N, classes). Raises UserError as `predict`, and for a regression."""
        if isinstance(self.problem.task, Regression):
            raise UserError("a regression has no probabilities of classes; use predict")
        outputs = self._outputs(x)
        if isinstance(self.problem.task, BinaryClassification):
            outputs = torch.cat([torch.zeros_like(outputs), outputs], 1)
        probabilities: NDArray[np.float64] = outputs.softmax(1).numpy()
        return probabilities

    def save(self, path: str | Path) -> None:
        """Write the predictor to a file, replacing one that is there; it is read by `Predictor.load`."""
        described: dict[str, Any] = {
            "spec": self.config.spec.model_dump(),
            "task": described_task(self.problem.task),
            "classes": self.classes,
            "kind": self.problem.kind,
            "input_shape": self.problem.input_shape,
            "environments": self.problem.environments,
            "feature_names": self.feature_names,
        }
        weights = {name: value.contiguous().clone() for name, value in self.model.state_dict().items()}
        described["fingerprint"] = _fingerprint(weights)
        with named_errors(Path(path)), replacing(Path(path)) as temporary:
            save_file(weights, temporary, {"format": FORMAT, "predictor": json.dumps(described)})

    @classmethod
    def load(cls, path: str | Path) -> "Predictor":
        """Read a predictor that `save` has written. Raises UserError where the file is another one, or damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
                described = json.loads(metadata["predictor"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            config = without_data(RunSpec.model_validate(described["spec"]))
            problem = _example(
                tuple(described["input_shape"]),
                described["environments"],
                task_of(described["task"]),
                described["kind"],
                tuple(described["classes"]),
            )
            if _fingerprint(weights) != described["fingerprint"]:
                raise ValueError("its weights are damaged")
            model = model_on(torch.device("cpu"), config, problem)
            model.load_state_dict(weights)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is not a predictor that this invbench can read: {why}") from None
        return cls(model.eval(), config, problem, tuple(described["feature_names"]))

    def _outputs(self, x: Any) -> Tensor:
        """Compute the outputs (N, outputs) of inputs."""
        names = tuple(map(str, getattr(x, "columns", ())))
        if names and self.feature_names and names != self.feature_names:
            raise UserError(
                f"x has the columns {', '.join(names)[:200]}; the model was trained on "
                f"{', '.join(self.feature_names)[:200]}, in this order"
            )
        inputs = inputs_of(x)
        if tuple(inputs.shape[1:]) != self.problem.input_shape:
            raise UserError(
                f"x has examples of shape {tuple(inputs.shape[1:])}, and the model was trained on those of shape "
                f"{self.problem.input_shape}"
            )
        noise = torch_stream(stream(self.config.spec.seed, "evaluation", 0))
        with eval_mode(self.model), torch.no_grad(), noise:
            dtype = getattr(torch, self.config.trainer.dtype)
            return outputs_of(self.model, inputs.to(dtype)).prediction.double()


def fit(
    method: str,
    x: Any,
    y: Any,
    *,
    environment: Any = None,
    nuisance: Any = None,
    weight: Any = None,
    attribute: Any = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> Predictor:
    """Train a method on all of these examples, and return the model.

    Inputs are taken as they are: scale features before, for example by scikit-learn's `StandardScaler`.

    >>> import invbench, numpy
    >>> x = numpy.random.default_rng(0).normal(size=(200, 2))
    >>> y = numpy.where(x[:, 0] > 0, "yes", "no")
    >>> predictor = invbench.fit("vrex", x, y, environment=x[:, 1] > 0, settings={"trainer.learning_rate": 0.01})
    >>> predictor.predict([[2.0, 0.0], [-2.0, 0.0]]).tolist()
    ['yes', 'no']

    Args:
        method: a registered name, or several joined by `+`.
        x, y, environment, nuisance, weight, attribute: as `Problem.from_arrays` takes them.
        settings: `{"trainer.epochs": 20, "backbone.name": "linear"}`.
        seed: of first weights, order and noise.
        device: auto, cpu, cuda or cuda:i.
        progress: show it on stderr; None: where that is a terminal or a notebook.

    Raises:
        UserError: arrays that do not fit, or a method that needs what they lack.
        RunFailed: the training failed.
    """
    given = {"x": x, "y": y, "environment": environment, "nuisance": nuisance, "weight": weight}
    given["attribute"] = attribute
    columns = {name: array_of(name, values) for name, values in given.items() if values is not None or name in "xy"}
    check_lengths(columns)
    count = len(columns["x"])
    split = ["train"] * count + ["test"] * count  # a problem needs a test split; nobody looks at its metrics
    twice: dict[str, Any] = {name: np.concatenate([array, array]) for name, array in columns.items()}
    problem = Problem.from_arrays(**twice, split=split)
    _check_method(method, problem, settings or {})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "problem.safetensors"
        problem.save(file)
        chosen = {"dataset.validation_share": 0.0, "trainer.measure_invariance": "off", **(settings or {})}
        chosen["dataset.path"] = str(file)
        record = run(method, "embedded", seed=seed, settings=chosen, device=device, out=folder, progress=progress)
        trained = load_run(Path(folder) / record.run_id)
    given = {"fingerprint": problem.fingerprint, "validation_share": 0.0}
    spec = trained.config.spec.model_copy(update={"dataset": DATASET, "dataset_settings": given})
    names = tuple(map(str, getattr(x, "columns", ())))
    return Predictor(trained.model, without_data(spec), _without_examples(trained.problem), names)


def _check_method(method: str, problem: Problem, settings: Mapping[str, Any]) -> None:
    """Raise UserError where a method needs what neither arrays nor settings nor a first stage provide."""
    names = [name.strip() for name in method.split("+")]
    made = provided_by(map(METHODS.load, names)) | {SECOND_STAGE}
    made |= {"environments"} if settings.get("dataset.environment_from", "data") != "data" else set()
    made |= {"nuisance"} if settings.get("dataset.nuisance_from", "data") != "data" else set()
    for name in names:
        if missing := unmet(METHODS.traits(name), (*problem.provides, *made)):
            groups = "environments" in missing and problem.attributes
            advice = "; settings={'dataset.environment_from': 'group'} makes them of the attribute" if groups else ""
            raise UserError(f"method {name} needs {' and '.join(missing)}, which these arrays do not have{advice}")


def _fingerprint(weights: Mapping[str, Tensor]) -> str:
    return fingerprint((name, value.numpy()) for name, value in sorted(weights.items()))


def _without_examples(problem: Problem) -> Problem:
    """Return a problem with the same shapes and environments, with an example of zeros in each."""
    return _example(problem.input_shape, problem.environments, problem.task, problem.kind, problem.classes)


def _example(shape: tuple[int, ...], environments: int, task: Task, kind: Kind, classes: tuple[str, ...]) -> Problem:
    env = torch.arange(environments)
    dtype = torch.int64 if isinstance(task, Classification) else torch.float32
    split = Split(torch.zeros(environments, *shape), torch.zeros(environments, dtype=dtype), env)
    return Problem({"train": split, "test": split}, task, kind, "full", classes=classes)
