"""From names and settings to the typed objects of a run, everything checked."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from invbench.core.backbone import Backbone
from invbench.core.composition import Composition
from invbench.core.data import Dataset
from invbench.core.groups import GroupedDataset
from invbench.core.hooks import GradientPenalty, WeighsPenalty, WithCritic
from invbench.core.method import Method, class_overrides
from invbench.core.registry import BACKBONES, DATASETS, METHODS, datasets_with_defaults, unmet
from invbench.core.settings import Settings
from invbench.core.stages import SecondStage, provided_by
from invbench.core.trainer import TrainerConfig
from invbench.errors import NotProvided, UserError, brief, did_you_mean
from invbench.runs.config import Layer, assignments_layer, check_sections, merge, recipe_layers
from invbench.runs.spec import Protocol, RunSpec, _checked_seed


@dataclass(frozen=True)
class RunConfig:
    """A run ready to be carried out: its specification, with the typed objects that it stands for."""

    spec: RunSpec
    method: Composition
    dataset: Dataset
    backbone: Backbone | None
    trainer: TrainerConfig

    @property
    def title(self) -> str:
        """Describe the run in a few words."""
        return self.spec.title

    @property
    def classes(self) -> tuple[type, ...]:
        """Return the classes whose code the run depends on, besides the engine, those of its first stage among them."""
        parts = (*self.method.parts.values(), self.dataset, *([self.backbone] if self.backbone else []))
        first = self.first_stage
        return (*(type(part) for part in parts), *(first.classes if first else ()))

    @cached_property
    def first_stage(self) -> "RunConfig | None":
        """The run that is carried out for this one to begin from, if any. Raises UserError for wrong settings of it."""
        stage = self.method.second_stage
        if stage is None or stage.from_run is not None:
            return None
        if wrong := [name for name in stage.first_settings if name.partition(".")[0] == "dataset"]:
            raise UserError(f"method.first_settings cannot change {wrong[0]}: both stages have the same data")
        spec, trainer = self.spec, dict(self.spec.trainer)
        for length in ("steps", "epochs"):
            if trainer[length] is not None:
                trainer[length] = max(1, round(stage.first_share * trainer[length]))
        values = {f"dataset.{name}": value for name, value in spec.dataset_settings.items()}
        values |= {f"trainer.{name}": value for name, value in trainer.items()}
        if spec.backbone and not METHODS.load(stage.first_method.partition("+")[0]).replaces_model:
            values |= {"backbone.name": spec.backbone}
            values |= {f"backbone.{name}": value for name, value in spec.backbone_settings.items()}
        return resolve(stage.first_method, spec.dataset, spec.seed, values | stage.first_settings)


def resolve(
    method: str,
    dataset: str,
    seed: int = 0,
    assignments: Mapping[str, Any] | None = None,
    layers: Iterable[Layer] = (),
    protocol: Protocol = "last",
) -> RunConfig:
    """Look up the names, merge the sources of settings, check everything.

    Args:
        method: registered names joined by `+`.
        assignments: the strongest source, by dotted name: `{"trainer.epochs": 3}`.
        layers: sources between the recipe and the assignments, such as a sweep file; method settings nested by part.
        protocol: see `Protocol`.

    Raises:
        UserError: an unknown name, a setting that is unknown or wrong, a combination that cannot work.
    """
    classes = _method_classes(method)
    _check_moved(assignments or {})
    dataset_class = DATASETS.load(dataset)
    fields = {name: list(cls.model_fields) for name, cls in classes.items()}
    first = next(iter(classes))
    if classes[first].replaces_model and any(key.startswith("backbone.") for key in assignments or {}):
        raise UserError(f"method {first} brings its own network, so backbone settings say nothing; leave them out")
    layers = list(layers)
    for layer in layers:
        check_sections(layer, "settings")
    layers.append(assignments_layer(assignments or {}, fields))
    given = merge(layers)["dataset"]
    variant = given.get("variant", _default_variant(dataset_class))
    merged = merge(
        [
            {"backbone": {"name": dataset_class.backbone}},
            dataset_class.parse(given, "dataset").defaults() if dataset_class.required_setting else {},
            {"dataset": _switched_on(dataset_class, classes.values())},
            *recipe_layers(dataset, classes, _beside_rules(classes), variant),
            *layers,
        ]
    )
    return _check(classes, dataset, dataset_class, merged, _checked_seed(seed), protocol)


def from_spec(spec: RunSpec) -> RunConfig:
    """Rebuild the typed objects of a stored specification."""
    classes = _method_classes(spec.method)
    merged: Layer = {
        "method": spec.method_settings,
        "dataset": spec.dataset_settings,
        "backbone": {"name": spec.backbone, **spec.backbone_settings},
        "trainer": spec.trainer,
    }
    return _check(classes, spec.dataset, DATASETS.load(spec.dataset), merged, spec.seed, spec.protocol)


def without_data(spec: RunSpec) -> RunConfig:
    """Rebuild the typed objects of a stored specification whose data may be gone; they are not asked for anything."""
    single = len(spec.method_settings) == 1
    parts = {
        name: METHODS.load(name).parse(settings, "method" if single else f"method.{name}")
        for name, settings in spec.method_settings.items()
    }
    backbone = BACKBONES.load(spec.backbone).parse(spec.backbone_settings, "backbone") if spec.backbone else None
    data = DATASETS.load(spec.dataset).parse(spec.dataset_settings, "dataset")
    return RunConfig(spec, Composition(parts), data, backbone, TrainerConfig.parse(spec.trainer, "trainer"))


def _check(
    classes: Mapping[str, type[Method]],
    dataset: str,
    dataset_class: type[Dataset],
    merged: Layer,
    seed: int,
    protocol: Protocol,
) -> RunConfig:
    unknown = set(merged["method"]) - set(classes)
    if unknown:
        raise UserError(f"settings for method '{unknown.pop()}', which is not part of this run")
    single = len(classes) == 1
    composition = Composition(
        {
            name: cls.parse(merged["method"].get(name, {}), "method" if single else f"method.{name}")
            for name, cls in classes.items()
        }
    )
    data = dataset_class.parse(merged["dataset"], "dataset")
    _check_cell(composition, dataset, data)
    name, backbone = ("", None) if composition.replaces_model else _backbone(merged["backbone"], dataset, data)
    trainer = TrainerConfig.parse(merged["trainer"], "trainer")
    spec = RunSpec(
        method=composition.name,
        method_settings={part: settings.canonical() for part, settings in composition.parts.items()},
        dataset=dataset,
        dataset_settings=data.canonical(),
        backbone=name,
        backbone_settings=backbone.canonical() if backbone else {},
        trainer=trainer.canonical(),
        seed=seed,
        protocol=protocol,
    )
    return RunConfig(spec, composition, data, backbone, trainer)


def _backbone(settings: Layer, dataset: str, data: Dataset) -> tuple[str, Backbone]:
    network = dict(settings)
    name = network.pop("name")
    if not isinstance(name, str):
        raise UserError(f"setting 'backbone.name' must be a name{did_you_mean(str(name), BACKBONES.entries())}")
    backbone: Backbone = BACKBONES.load(name).parse(network, "backbone")
    if not set(backbone.accepts) & set(data.capabilities()):
        raise UserError(f"backbone {name} takes {' or '.join(backbone.accepts)} inputs, which {dataset} does not have")
    return name, backbone


MOVED = {"method.stop_below": "trainer.stop_below", "method.warm_start": "trainer.stop_after"}
"""New names of settings that were a method's and are the trainer's."""


def _check_moved(assignments: Mapping[str, Any]) -> None:
    for name in assignments:
        if new := MOVED.get(name.replace("method.irm_games.", "method.")):
            raise UserError(f"setting '{name}' is {new} now")


def _method_classes(method: str) -> dict[str, type[Method]]:
    names = [name.strip() for name in method.split("+")]
    name, times = Counter(names).most_common(1)[0]
    if not all(names):
        raise UserError(f"method {brief(method)}: there is no name on one side of a +")
    if times > 1:
        raise UserError(f"method {brief(method)} names '{name}' twice")
    classes: dict[str, type[Method]] = {name: METHODS.load(name) for name in names}
    weighing = [name for name, cls in classes.items() if issubclass(cls, WeighsPenalty)]
    if weighing and not any(_has_penalty(cls) for cls in classes.values()):
        raise UserError(
            f"method {brief(method)}: {weighing[0]} weighs a penalty against the risk, and no part has one; put one "
            f"ahead of it, such as irmv1+{method.strip()}"
        )
    return classes


def with_penalty(method: str) -> str:
    """Return a method that can run alone: a rule that weighs a penalty gets IRMv1 in front, as in its source."""
    return f"irmv1+{method}" if issubclass(METHODS.load(method), WeighsPenalty) else method


def _has_penalty(cls: type[Method]) -> bool:
    return class_overrides(cls, "penalty") or issubclass(cls, (GradientPenalty, WithCritic))


def _beside_rules(classes: Mapping[str, type[Method]]) -> Layer:
    """Return the settings that rules which weigh a penalty ask of that penalty."""
    rules = [cls for cls in classes.values() if issubclass(cls, WeighsPenalty)]
    required = {name: dict(settings) for cls in rules for name, settings in cls.penalty_settings.items()}
    return {"method": {name: settings for name, settings in required.items() if name in classes}}


def _switched_on(dataset: type[Dataset], methods: Iterable[type[Method] | Method]) -> dict[str, Any]:
    """Return the dataset's settings that switch on what the methods require and what is off by default."""
    methods = list(methods)
    always = (set(dataset.provides) - set(dataset.optional)) | provided_by(methods)
    settings: dict[str, Any] = {}
    for need in (need.split(" or ") for method in methods for need in method.requires):
        off = [name for name in need if name in dataset.optional]
        if off and not always & set(need):
            settings |= dataset.optional[off[0]]
    return settings


def _default_variant(dataset: type[Dataset]) -> Any:
    field = dataset.model_fields.get("variant")
    return None if field is None else field.default


def _check_cell(method: Composition, dataset: str, data: Dataset) -> None:
    _check_environments_left(method, data)
    missing = unmet(method.requires, (*data.capabilities(), *method.provides))
    if not missing:
        return
    groups = "environments" in missing and isinstance(data, GroupedDataset)
    if named := [data.advice[what] for what in missing if what in data.advice]:
        other = "dataset.environment_from=group"
        named += [f"or, of groups, {other}"] if groups and not any(other in one for one in named) else []
        raise NotProvided(
            f"method {method.name} needs {' and '.join(missing)}; say where dataset {dataset} has them: "
            f"{', '.join(named)}"
        )
    settings = [f"dataset.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in _helpful(method, data).items()]
    able = [
        name
        for name in datasets_with_defaults()
        if name != dataset and not unmet(method.requires, DATASETS.traits(name))
    ]
    of_ones_own = [
        name
        for name in DATASETS.entries()
        if DATASETS.literal(name, "required_setting", "") and not unmet(method.requires, DATASETS.traits(name))
    ]
    advice = f"set {' and '.join(settings)}" if settings else f"datasets that can: {', '.join(able) or 'none'}"
    advice += f"; with data of your own: {', '.join(of_ones_own)}" if of_ones_own and not settings else ""
    raise NotProvided(
        f"method {method.name} needs {' and '.join(missing)}, which dataset {dataset} with these settings does not "
        f"provide; {advice}"
    )


def _check_environments_left(method: Composition, data: Dataset) -> None:
    """Raise UserError where a part needs environments, and a second stage takes them away or another visits one."""
    left = tuple(what for what in data.capabilities() if what != "environments")
    needing = [
        name
        for name, part in method.parts.items()
        if any("environments" in need.split(" or ") for need in unmet(part.requires, left))
    ]
    for stage, part in method.parts.items():
        if isinstance(part, SecondStage) and not part.has_environments and needing:
            raise UserError(f"{stage} trains on examples without environments, so {needing[0]} has none to compare")
    method.check_visits(needing)


def _helpful(method: Composition, data: Dataset) -> dict[str, Any]:
    """Search for settings with which the dataset provides what the method requires; empty where none do."""
    now, on = data.canonical(), _switched_on(type(data), method.parts.values())
    choices = {name: get_args(field.annotation) for name, field in type(data).model_fields.items()}
    for more in ({}, *({name: value} for name, values in choices.items() for value in values)):
        with suppress(UserError):  # no such value, or not with the others
            tried = type(data).parse(now | on | more, "dataset")
            if not unmet(method.requires, tried.capabilities()):
                return {name: value for name, value in (on | more).items() if now[name] != value}
    return {}


def fusion_key(config: RunConfig) -> str:
    """Return a key that is equal for runs that may be trained together: all but the seed and fusable values."""
    spec = config.spec.model_dump(exclude={"seed"})
    spec["method_settings"] = {name: _shape(part) for name, part in config.method.parts.items()}
    spec["trainer"] = _shape(config.trainer)
    return json.dumps(spec, sort_keys=True)


def _shape(settings: Settings) -> dict[str, Any]:
    """Return the settings, with only whether they are zero of the fusable ones."""
    fusable = type(settings).fusable()
    return {name: value == 0 if name in fusable else value for name, value in settings.canonical().items()}


def fuse_obstacle(config: RunConfig) -> str:
    """Return why a run's settings keep it from being trained together with others; empty where nothing does."""
    if config.trainer.autocast:
        return "trainer.autocast is on"
    if config.trainer.stop_below is not None:
        return "trainer.stop_below may end a run before its last step"
    if config.trainer.strategy == "loop":
        return "trainer.strategy is loop"
    return config.method.fuse_obstacle
