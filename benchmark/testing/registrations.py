"""Registrations that end with a test."""

from collections.abc import Iterator
from contextlib import contextmanager

from invbench.core.metric import METRICS, find_metric
from invbench.core.registry import BACKBONES, DATASETS, METHODS


@contextmanager
def temporary_registrations() -> Iterator[None]:
    """Forget what is registered inside a `with` statement: methods, datasets, backbones and metrics.

    At its end the names mean what they meant before, so that tests can register classes under the same name. A module
    that registers while it is imported should be imported before: Python does not execute it a second time.

    >>> import invbench
    >>> from invbench.testing import temporary_registrations
    >>> with temporary_registrations():
    ...     @invbench.register_method("mean_risk")
    ...     class MeanRisk(invbench.Method):
    ...         pass
    ...
    ...     invbench.run("mean_risk", "spirals", settings={"trainer.epochs": None, "trainer.steps": 2}).status
    'done'
    >>> invbench.run("mean_risk", "spirals")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    invbench.errors.UserError: no method 'mean_risk'; ...
    """
    find_metric("")  # installed packages' metrics are registered by the first look-up, and stay
    metrics = dict(METRICS)
    with METHODS.temporary(), DATASETS.temporary(), BACKBONES.temporary():
        try:
            yield
        finally:
            METRICS.clear()
            METRICS.update(metrics)
