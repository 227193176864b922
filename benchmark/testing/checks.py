"""Checks by name: of a registered subject, or of a class that is registered for the time of a check."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from invbench.core.backbone import Backbone
from invbench.core.data import Dataset
from invbench.core.method import Method
from invbench.core.registry import BACKBONES, DATASETS, METHODS, Registry, datasets_with_defaults, unmet
from invbench.core.third_party import one_line
from invbench.errors import UserError
from invbench.testing.backbone_checks import BACKBONE_CHECKS
from invbench.testing.cells import load, small_config
from invbench.testing.dataset_checks import DATASET_CHECKS
from invbench.testing.method_checks import METHOD_CHECKS
from invbench.training.sampling import Sampler

NamedCheck = tuple[str, Callable[[], None]]
"""Name of a check, and a function that raises AssertionError: one line with the class, the check and what is wrong."""


def check_method(method: type[Method] | str, datasets: Sequence[str] | None = None) -> None:
    """Check that a method keeps the contract; `invbench.testing` lists the checks, which stop at the first failure.

    Each trains a cell for at most twelve steps on the CPU: the `small` version of the dataset, with the method's
    `small` settings and, where it would draw at random, its `deterministic` ones. All checks on all datasets take
    seconds for most methods. A class that is not registered is registered for their time only. Runs are written to
    temporary folders; what lasts are prepared data, which some datasets keep in the cache (INVBENCH_CACHE).

    >>> import invbench
    >>> from invbench.testing import check_method
    >>> class WorstCase(invbench.Method):
    ...     requires = ("environments",)
    ...     sharpness: float = invbench.setting(5.0, "of the maximum, per nat of risk", gt=0, fusable=True)
    ...
    ...     def risk(self, risks, env, state):
    ...         return (self.sharpness * risks).logsumexp(0) / self.sharpness, state
    >>> check_method(WorstCase, datasets=["spirals"])
    >>> class CountsTheFirstTwice(WorstCase):
    ...     def risk(self, risks, env, state):
    ...         return risks.mean() + risks[0], state
    >>> check_method(CountsTheFirstTwice, datasets=["spirals"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: method CountsTheFirstTwice fails order_of_environments_does_not_matter on spirals: the gradient ...

    Args:
        method: a class, registered or not, or a registered name.
        datasets: registered names; None takes every dataset that needs no files and provides what the method requires.

    Raises:
        AssertionError: one line that names the class, the check and what is wrong.
        UserError: it is no method, no such name is a dataset, or no dataset provides what the method requires.
    """
    for _, check in checks_of_method(method, datasets):
        check()


def check_dataset(dataset: type[Dataset] | str) -> None:
    """Check that a dataset keeps the contract; `invbench.testing` lists the checks, which stop at the first failure.

    They load the `small` version that the class describes, and train ERM on it for two steps on the CPU; most take less
    than a second. A class that is not registered is registered for their time only. What lasts is what `load` itself
    keeps, such as prepared data in the cache (INVBENCH_CACHE). Files of a release must be on this machine.

    >>> from invbench.testing import check_dataset
    >>> check_dataset("spirals")

    Args:
        dataset: a class, registered or not, or a registered name.

    Raises:
        AssertionError: one line that names the class, the check and what is wrong.
        UserError: it is no dataset.
    """
    for _, check in checks_of_dataset(dataset):
        check()


def check_backbone(backbone: type[Backbone] | str, settings: Mapping[str, Any] | None = None) -> None:
    """Check that a backbone keeps the contract; `invbench.testing` lists the checks, which stop at the first failure.

    They build it for made-up inputs of each kind that it accepts, six examples each, and pass those through it on the
    CPU, which takes less than a second for a small network. Nothing is trained or written.

    >>> from invbench.testing import check_backbone
    >>> check_backbone("mlp", {"width": 8})

    Args:
        backbone: a class, registered or not, or a registered name.
        settings: its settings by name; those that are left out have their defaults.

    Raises:
        AssertionError: one line that names the class, the check and what is wrong.
        UserError: it is no backbone, or has no such setting.
    """
    for _, check in checks_of_backbone(backbone, settings):
        check()


def checks_of_method(method: type[Method] | str, datasets: Sequence[str] | None = None) -> list[NamedCheck]:
    """Return the checks of `check_method`, each with its name, for `pytest.mark.parametrize`.

    Names are `<check>[<dataset>]`. Arguments are those of `check_method`.

    Raises:
        UserError: it is no method, or no such dataset provides what it requires.
    """
    with registered(METHODS, method) as name:
        cls: type[Method] = METHODS.load(name)
        chosen = datasets_for(name) if datasets is None else list(datasets)
    return [
        _named(METHODS, method, check.name, dataset, _on(check.run, dataset))
        for check in METHOD_CHECKS
        if check.applies(cls)
        for dataset in (chosen if check.everywhere else chosen[:1])
    ]


def checks_of_dataset(dataset: type[Dataset] | str) -> list[NamedCheck]:
    """Return the checks of `check_dataset`, each with its name, for `pytest.mark.parametrize`.

    Raises:
        UserError: it is no dataset.
    """
    with registered(DATASETS, dataset):
        pass  # what is no dataset is refused now
    return [_named(DATASETS, dataset, check.__name__, "", _with_erm(check)) for check in DATASET_CHECKS]


def checks_of_backbone(backbone: type[Backbone] | str, settings: Mapping[str, Any] | None = None) -> list[NamedCheck]:
    """Return the checks of `check_backbone`, each with its name, for `pytest.mark.parametrize`.

    Raises:
        UserError: it is no backbone, or has no such setting.
    """
    with registered(BACKBONES, backbone) as name:
        network: Backbone = BACKBONES.load(name).parse(settings or {}, "backbone")
    return [
        _named(BACKBONES, backbone, check.__name__, "", lambda _, check=check: check(network))  # type: ignore[misc]
        for check in BACKBONE_CHECKS
    ]


def datasets_for(method: str) -> list[str]:
    """Return registered datasets that need no files, provide what a method requires and have examples enough for it.

    Raises:
        UserError: there is none.
    """
    requires = METHODS.traits(method)
    able = [
        name
        for name in datasets_with_defaults()
        if not DATASETS.literal(name, "release", "")
        and not unmet(requires, DATASETS.traits(name))
        and _enough_examples(method, name)
    ]
    if not able:
        raise UserError(
            f"no dataset without files provides what {method} requires ({', '.join(requires)}); name some by "
            "check_method(..., datasets=[...])"
        )
    return able


def _enough_examples(method: str, dataset: str) -> bool:
    config = small_config(method, dataset)
    least = config.method.min_examples
    return least == 1 or Sampler.of(load(config).splits["train"], config.trainer, 0).batch_size >= least


@contextmanager
def registered(registry: Registry, subject: type[Any] | str) -> Iterator[str]:
    """Give a class a name inside a `with` statement; one that is not registered is forgotten at its end.

    Raises:
        UserError: nothing has the name, or the class is none of this kind.
    """
    if isinstance(subject, str):
        registry.load(subject)
        yield subject
        return
    for name, cls in registry._registered.items():
        if cls is subject:
            yield name
            return
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", getattr(subject, "__name__", "unnamed")).lower().strip("_")
    while name in registry.known():
        name += "_checked"
    with registry.temporary():
        registry.register(name)(subject)
        yield name


def _on(run: Callable[[Any], None], dataset: str) -> Callable[[str], None]:
    """Turn a check of a cell into one of a method's name."""
    return lambda name: run(small_config(name, dataset))


def _with_erm(run: Callable[[Any], None]) -> Callable[[str], None]:
    """Turn a check of a cell into one of a dataset's name."""
    return lambda name: run(small_config("erm", name))


def _named(
    registry: Registry, subject: type[Any] | str, check: str, dataset: str, run: Callable[[str], None]
) -> NamedCheck:
    label = subject if isinstance(subject, str) else subject.__qualname__
    where = f" on {dataset}" if dataset else ""

    def call() -> None:
        with registered(registry, subject) as name, torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            try:
                run(name)
            except AssertionError as error:
                raise AssertionError(f"{registry.kind} {label} fails {check}{where}: {error}") from None
            except Exception as error:
                raise AssertionError(f"{registry.kind} {label} fails {check}{where}: {one_line(error)}") from error

    return f"{check}[{dataset}]" if dataset else check, call
