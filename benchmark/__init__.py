"""invbench: which invariance method works on which problem, by how much, and at what cost.

>>> import invbench
>>> settings = {"trainer.epochs": None, "trainer.steps": 20}
>>> records = invbench.run("and_mask", "spirals", seeds="0-2", settings=settings)
>>> table = invbench.table(invbench.load_results("results"))
>>> table[["method", "dataset", "metric", "n"]].values.tolist()
[['and_mask', 'spirals', 'test_accuracy', 3]]

A method of one's own is a class; once it is registered, it runs like the others:

>>> @invbench.register_method("smooth_maximum")
... class SmoothMaximum(invbench.Method):
...     sharpness: float = invbench.setting(5.0, "of the maximum, per nat of risk", gt=0)
...
...     def risk(self, risks, env, state):
...         return (self.sharpness * risks).logsumexp(0) / self.sharpness, state
>>> invbench.run("smooth_maximum", "spirals", settings=settings | {"method.sharpness": 2.0}).status
'done'

Mistakes are one line that says what to do:

>>> invbench.run("andmask", "spirals")
Traceback (most recent call last):
invbench.errors.UserError: no method 'andmask'; did you mean 'and_mask'?
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from invbench.system.threads import wait_passively

if TYPE_CHECKING:
    from invbench.core.backbone import Backbone
    from invbench.core.data import Batch, Dataset, Problem, Split
    from invbench.core.method import Gradients, Method, Outputs, State
    from invbench.core.metric import Metric, register_metric
    from invbench.core.registry import register_backbone, register_dataset, register_method
    from invbench.core.settings import Choice, LogUniform, Uniform, setting
    from invbench.errors import RunFailed, UserError
    from invbench.results.comparison import compare
    from invbench.results.load import load_curves, load_results
    from invbench.results.table import table
    from invbench.runs.record import Record
    from invbench.sweeps.execute import sweep
    from invbench.training.build import load_problem
    from invbench.training.predictor import Predictor, fit
    from invbench.training.restored import load_run
    from invbench.training.runner import run

    __version__: str

__all__ = [
    "Backbone",
    "Batch",
    "Choice",
    "Dataset",
    "Gradients",
    "LogUniform",
    "Method",
    "Metric",
    "Outputs",
    "Predictor",
    "Problem",
    "Record",
    "RunFailed",
    "Split",
    "State",
    "Uniform",
    "UserError",
    "__version__",
    "compare",
    "fit",
    "load_curves",
    "load_problem",
    "load_results",
    "load_run",
    "register_backbone",
    "register_dataset",
    "register_method",
    "register_metric",
    "run",
    "setting",
    "sweep",
    "table",
]

wait_passively()

_HOMES = {
    "core.backbone": ("Backbone",),
    "core.data": ("Batch", "Dataset", "Problem", "Split"),
    "core.method": ("Gradients", "Method", "Outputs", "State"),
    "core.metric": ("Metric", "register_metric"),
    "core.registry": ("register_backbone", "register_dataset", "register_method"),
    "core.settings": ("Choice", "LogUniform", "Uniform", "setting"),
    "errors": ("RunFailed", "UserError"),
    "results.comparison": ("compare",),
    "results.load": ("load_curves", "load_results"),
    "results.table": ("table",),
    "runs.record": ("Record",),
    "sweeps.execute": ("sweep",),
    "training.build": ("load_problem",),
    "training.restored": ("load_run",),
    "training.predictor": ("Predictor", "fit"),
    "training.runner": ("run",),
}
"""Modules, and the names that each has."""


def __getattr__(name: str) -> Any:
    """Import on first use: `bench ls` must not wait for torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("invbench")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"invbench.{home}"), name)
    raise AttributeError(f"module 'invbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
