"""Commands that repeat a run."""

import itertools
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from invbench.errors import UserError, brief
from invbench.runs.resolve import resolve
from invbench.runs.spec import MAX_SEED, RunSpec
from invbench.strict_yaml import parse_yaml

MOST_SEEDS = 100_000
"""Maximum number of seeds that one text may name."""


def assignments_of(spec: RunSpec) -> dict[str, Any]:
    """Return the settings, by dotted name, in which a run differs from the defaults of its method and dataset.

    Raises:
        UserError: this version does not know the method, the dataset or some setting, or sets something else besides.
    """
    settings = _settings(spec)
    try:
        assignments = _differing(spec, settings)
    except UserError:  # such as a default that does not go with another setting of the run
        assignments = settings
    made = resolve(spec.method, spec.dataset, spec.seed, assignments, protocol=spec.protocol).spec
    if made != spec:
        raise UserError(f"this version of invbench makes another run of {spec.title} than {spec.run_id}")
    return assignments


def command_of(spec: RunSpec, seeds: Sequence[int]) -> str:
    """Return the command that makes the same run with these seeds. Raises UserError as `assignments_of` does."""
    numbers = f"--seed {seeds[0]}" if len(seeds) == 1 else f"--seeds {ranges(seeds)}"
    parts = [f"bench run --method {shlex.quote(spec.method)} --dataset {shlex.quote(spec.dataset)} {numbers}"]
    parts += [f"--set {shlex.quote(f'{name}={_typed(value)}')}" for name, value in assignments_of(spec).items()]
    return " ".join(parts)


def parse_seeds(seeds: str | int | Iterable[int]) -> list[int]:
    """Parse seeds: `0-4`, `0,2,7` and mixtures, a number or a list, without repetition.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]

    Raises:
        UserError: the text is something else, or they are too many.
    """
    if not isinstance(seeds, str):
        numbers = list(itertools.islice(seeds, MOST_SEEDS + 1)) if isinstance(seeds, Iterable) else [seeds]
        if isinstance(seeds, bytes) or not 0 < len(numbers) <= MOST_SEEDS:
            raise UserError(f"seeds {brief(repr(seeds))}: give 1 to {MOST_SEEDS:,} whole numbers, or a text as 0-4")
        return list(dict.fromkeys(numbers))
    spans = []
    for part in seeds.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match and last < first:
            raise UserError(f"seeds {brief(seeds)}: {part.strip()} runs backwards; write {last}-{first}")
        if not first <= last <= MAX_SEED:
            raise UserError(f"seeds {brief(seeds)}: write ranges and numbers up to {MAX_SEED}, such as 0-4 or 0,2,7")
        spans.append(range(first, last + 1))
    if (count := sum(map(len, spans))) > MOST_SEEDS:
        raise UserError(f"seeds {brief(seeds)}: they are {count:,}, and can be {MOST_SEEDS:,}")
    return list(dict.fromkeys(itertools.chain(*spans)))


def ranges(seeds: Sequence[int]) -> str:
    """Format seeds as `--seeds` takes them, such as 0-4,7."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _differing(spec: RunSpec, settings: Mapping[str, Any]) -> dict[str, Any]:
    fixed: dict[str, Any] = {}  # on which other defaults depend
    for name in ("dataset.variant", "backbone.name"):
        defaults = _settings(_default(spec.method, spec.dataset, **fixed))
        if name in settings and defaults.get(name) != settings[name]:
            fixed[name] = settings[name]
    defaults = _settings(_default(spec.method, spec.dataset, **fixed))
    return fixed | {name: value for name, value in settings.items() if name not in defaults or defaults[name] != value}


@cache
def _default(method: str, dataset: str, **fixed: str) -> RunSpec:
    """Return the specification of a cell with default settings but for these."""
    return resolve(method, dataset, assignments=fixed).spec


def _settings(spec: RunSpec) -> dict[str, Any]:
    """Return all settings of a run, by names as `--set` takes them."""
    single = len(spec.method_settings) == 1
    parts = {"method" if single else f"method.{name}": settings for name, settings in spec.method_settings.items()}
    parts |= {"dataset": spec.dataset_settings, "trainer": spec.trainer}
    parts["backbone"] = {"name": spec.backbone, **spec.backbone_settings} if spec.backbone else {}
    return {f"{section}.{name}": value for section, settings in parts.items() for name, value in settings.items()}


def _typed(value: Any) -> str:
    """Format a value as `--set` reads it; text has no quotes where YAML reads it as text anyway."""
    if isinstance(value, str):
        with suppress(UserError):
            if parse_yaml(value, "") == value:
                return value
    return json.dumps(value, ensure_ascii=False)  # YAML knows no pairs of surrogates
