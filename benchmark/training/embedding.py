"""Representations of a dataset by a network, computed once and kept as a dataset of vectors."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invbench.components.eval_mode import eval_mode
from invbench.console import OnProgress
from invbench.core.backbone import first_weights
from invbench.core.data import AS_THEY_ARE, Problem
from invbench.core.image_file import ImageFile
from invbench.core.method import as_outputs
from invbench.errors import UserError
from invbench.runs.resolve import RunConfig, resolve
from invbench.system.device import choose_device
from invbench.training.build import loaded, model_on, problem_on

ROWS = 64
"""Examples that pass through the network together."""


def embed(
    dataset: str,
    backbone: str,
    out: str | Path,
    *,
    weights: str = "none",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress = lambda count: None,
) -> Problem:
    """Compute the representations of every split by a network in evaluation mode, and write them to a file.

    `invbench.run(method, "embedded", settings={"dataset.path": out})` trains on them. With a frozen network and no
    random change of images a linear network there is the same model as the whole one on the images.

    Args:
        dataset: a registered name.
        backbone: a registered name, with the network's where it has several: `resnet9`, `timm:resnet18`.
        out: file that is written, such as `pacs.safetensors`.
        weights: of a network of torchvision or timm: none, default, or the path of a file.
        settings: of dataset and backbone by dotted name.
        seed: of the data and, where weights are random, of the weights.
        device: auto, cpu, cuda or cuda:i.
        on_progress: called with the number of examples that are done.

    Raises:
        UserError: no such dataset or network, or it has no representation.
    """
    if not Path(out).parent.is_dir() or Path(out).is_dir():
        raise UserError(f"{out} cannot be written: it is a folder, or there is no folder {Path(out).parent}")
    config = _config(dataset, backbone, weights, settings or {}, seed)
    for name in ("attribute_known", "second_stage_share"):
        if f"dataset.{name}" in (settings or {}):
            raise UserError(
                f"dataset.{name} is a setting of the runs on the representations, which are of all the data"
            )
    problem = loaded(config)
    chosen = choose_device(device)
    model = model_on(chosen, config, problem)
    on_device = problem_on(chosen, config, problem)
    splits, done = {}, 0
    with eval_mode(model), torch.no_grad():
        for name, split in on_device.splits.items():
            parts = []
            for part in representations(model, split.x):
                parts.append(part.float().cpu())
                done += len(part)
                on_progress(done)
            splits[name] = replace(problem.splits[name], x=torch.cat(parts), digests=None)
    of_weights = {f"weights_{name}": value for name, value in first_weights(model).items()}
    source = {"dataset": dataset, "network": backbone, **of_weights}
    embedded = replace(problem, splits=splits, kind="vector", pixels=AS_THEY_ARE, source=source)
    embedded = replace(embedded, augment=None, law=None, symmetry=None)
    embedded.save(out)
    return embedded


def representations(model: nn.Module, x: Tensor | ImageFile) -> Iterator[Tensor]:
    """Yield the representations (n, width) of inputs, part by part. Raises UserError where the network has none."""
    for part in x.split(ROWS):
        representation = as_outputs(model(part)).representation
        if representation is None:
            raise UserError("this network returns no representation; choose another backbone")
        yield representation.flatten(1)


def _config(dataset: str, backbone: str, weights: str, settings: Mapping[str, Any], seed: int) -> RunConfig:
    name, _, model = backbone.partition(":")
    chosen = {"backbone.name": name, **settings}
    if model:
        chosen["backbone.model"] = model
    if weights != "none":
        chosen["backbone.weights"] = weights
    return resolve("erm", dataset, seed, chosen)
