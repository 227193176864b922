"""Loggers, to which a run's curves go row by row.

Every run keeps its curves in `curves.parquet` whatever else is asked for. Further ones, all in the run's folder:

    csv          curves.csv
    tensorboard  event files in tensorboard/
    wandb        an offline run in wandb/, for `wandb sync`; the variable WANDB_MODE=online sends it at once
    mlflow       a database, mlflow.db, or the server that the variable MLFLOW_TRACKING_URI names

A run that is taken up goes on where it was; what was logged after its last checkpoint is logged again.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from invbench.errors import UserError, did_you_mean
from invbench.runs.folder import RunFolder
from invbench.runs.spec import RunSpec

Row = Mapping[str, float]


class Logger(ABC):
    """Destination of a run's curves.

    Args:
        folder: the run's.
        rows: what is known from before a run was taken up.
    """

    @abstractmethod
    def __init__(self, folder: RunFolder, spec: RunSpec, rows: Sequence[Row]) -> None: ...

    @abstractmethod
    def row(self, row: Row) -> None:
        """Log one row of the curves; `step` and `epoch` are among its columns."""

    @abstractmethod
    def close(self) -> None:
        """Close the logger when the run stops, finished or not."""


class CSV(Logger):
    """Table of all rows, written when the run stops."""

    def __init__(self, folder: RunFolder, spec: RunSpec, rows: Sequence[Row]) -> None:
        self.folder, self.rows = folder, list(rows)

    def row(self, row: Row) -> None:
        self.rows.append(row)

    def close(self) -> None:
        import pandas as pd  # takes a second

        from invbench.spreadsheet import csv

        with self.folder.replacing(self.folder.path / "curves.csv") as temporary:
            temporary.write_text(csv(pd.DataFrame(self.rows)), encoding="utf-8")


class TensorBoard(Logger):
    """Scalars for `tensorboard --logdir`."""

    def __init__(self, folder: RunFolder, spec: RunSpec, rows: Sequence[Row]) -> None:
        writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter
        first = int(rows[-1]["step"]) + 1 if rows else None
        self.writer: Any = writer(str(folder.path / "tensorboard"), purge_step=first)

    def row(self, row: Row) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        self.writer.close()


class WandB(Logger):
    """Weights & Biases, offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: RunFolder, spec: RunSpec, rows: Sequence[Row]) -> None:
        wandb = _package("wandb", "wandb")
        self.run: Any = wandb.init(
            project="invbench",
            id=spec.run_id,
            name=spec.title,
            config=spec.flat(),
            dir=str(folder.path),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow" if rows else None,
            settings=wandb.Settings(silent=True, disable_git=True),
        )

    def row(self, row: Row) -> None:
        self.run.log(dict(row), step=int(row["step"]))

    def close(self) -> None:
        self.run.finish()


class MLflow(Logger):
    """MLflow run with the settings as parameters."""

    def __init__(self, folder: RunFolder, spec: RunSpec, rows: Sequence[Row]) -> None:
        mlflow = _package("mlflow", "mlflow")
        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder.path / 'mlflow.db').absolute()}"
        self.client: Any = mlflow.MlflowClient(store)
        self.metric: Any = mlflow.entities.Metric
        experiment = self.client.get_experiment_by_name("invbench")
        number = experiment.experiment_id if experiment else self.client.create_experiment("invbench")
        self.run: str = self.client.create_run(number, run_name=spec.title).info.run_id
        settings = [mlflow.entities.Param(name, str(value)) for name, value in spec.flat().items()]
        self.client.log_batch(self.run, params=settings)

    def row(self, row: Row) -> None:
        now, step = int(1000 * time.time()), int(row["step"])
        self.client.log_batch(self.run, [self.metric(name, value, now, step) for name, value in row.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run)


LOGGERS: dict[str, type[Logger]] = {"csv": CSV, "tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Loggers:
    """All loggers of a run.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder, spec: RunSpec) -> None:
        self.names, self.folder, self.spec = tuple(dict.fromkeys(names)), folder, spec
        for name in self.names:
            if name not in LOGGERS:
                raise UserError(f"no logger '{name}'{did_you_mean(name, LOGGERS)}")
            if name in PACKAGES:
                _package(PACKAGES[name], name)
        self.open: list[Logger] = []

    def begin(self, rows: Sequence[Row]) -> None:
        """Open all loggers."""
        self.open = [LOGGERS[name](self.folder, self.spec, rows) for name in self.names]

    def row(self, row: Row) -> None:
        """Log a row with every logger."""
        for logger in self.open:
            logger.row(row)

    def close(self) -> None:
        """Close all loggers."""
        for logger in self.open:
            logger.close()
        self.open = []


def _package(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UserError(f"--logger {extra} needs a package that is missing: pip install 'invbench[{extra}]'") from None
