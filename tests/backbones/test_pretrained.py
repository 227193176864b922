"""Networks of torchvision and timm: their numbers are those of the packages, and wrong files are one line."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import invbench
from invbench.backbones._pretrained import IMAGENET, adapt_channels
from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import Pixels, Problem
from invbench.core.registry import BACKBONES
from invbench.errors import UserError
from invbench.system.workarounds import torchvision as load_torchvision
from invbench.testing import check_backbone

torchvision = load_torchvision()
HAS_TIMM = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
PACKAGES = ["torchvision", pytest.param("timm", marks=needs_timm)]
RNG = np.random.default_rng(0)


def problem(channels: int = 3, size: int = 32, pixels: Pixels = Pixels()) -> Problem:  # noqa: B008, it is frozen
    images = RNG.random((24, channels, size, size)).astype(np.float32)
    made = Problem.from_arrays(images, np.arange(24) % 3, environment=np.arange(24) // 12)
    return Problem(made.splits, made.task, made.kind, "full", classes=made.classes, pixels=pixels)


def build(package: str, data: Problem, **settings: Any) -> FeaturesAndHead:
    torch.manual_seed(0)
    model = BACKBONES.load(package).parse(settings, "backbone").build(data)
    assert isinstance(model, FeaturesAndHead)
    return model


def plain(package: str, name: str) -> nn.Module:
    """Make the package's network, with its head."""
    torch.manual_seed(1)
    if package == "torchvision":
        return torchvision.models.get_model(name)  # type: ignore[no-any-return]
    import timm

    return timm.create_model(name)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_features_are_those_of_the_network_of_the_file(package: str, suffix: str, tmp_path: Path) -> None:
    """Whatever the standardisation of the data; and the head of the file is left out."""
    network = plain(package, "resnet18").eval()
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    data = problem(pixels=Pixels((0.5,), (0.25,)))
    model = build(package, data, weights=str(path)).eval()
    x = data.splits["test"].inputs()
    network.fc = nn.Identity()
    expected = network(IMAGENET.standardised(x * 0.25 + 0.5))
    assert torch.equal(model.features(x), expected)
    assert torch.equal(model(x).prediction, model.head(expected))
    same = build(package, problem(pixels=IMAGENET), weights=str(path)).eval()
    assert torch.equal(same.features(x), network(x))


def test_the_record_tells_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(plain("torchvision", "resnet18").state_dict(), path)
    settings = {"backbone.name": "torchvision", "backbone.weights": str(path), "trainer.epochs": None}
    settings |= {"trainer.steps": 1, "trainer.measure_invariance": "off", "trainer.batch_size": 4}
    record = invbench.run("erm", problem(size=16), settings=settings, out=tmp_path)
    assert record.engine["weights"]["weights"] == "weights.pth"
    assert len(record.engine["weights"]["sha256"]) == 64
    assert invbench.load_run(tmp_path / record.run_id).model is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_a_frozen_network_trains_its_head_only(package: str) -> None:
    model = build(package, problem(), freeze=True).train()
    assert {name.partition(".")[0] for name, value in model.named_parameters() if value.requires_grad} == {"head"}
    assert not any(module.training for module in model.features.modules())
    x = problem().splits["train"].inputs()
    assert torch.equal(model(x).prediction[:2], model(x[:2]).prediction) or torch.allclose(
        model(x).prediction[:2], model(x[:2]).prediction, atol=1e-5
    )


def test_frozen_batch_norm_does_not_mix_rows_and_keeps_its_statistics() -> None:
    x = problem().splits["train"].inputs()
    model = build("torchvision", problem(), freeze_batch_norm=True).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert torch.allclose(model(x).prediction[:2], model(x[:2]).prediction, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    free = build("torchvision", problem()).train()
    assert not torch.allclose(free(x).prediction[:2], free(x[:2]).prediction, atol=1e-5)


def test_dropout_is_ahead_of_the_head() -> None:
    data = problem()
    model = build("torchvision", data, dropout=0.5, freeze_batch_norm=True).train()
    outputs = model(data.splits["train"].inputs())
    assert 0.3 < (outputs.representation == 0).double().mean() < 0.9
    assert torch.equal(model.head(outputs.representation), outputs.prediction)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels(channels: int) -> None:
    data = problem(channels)
    assert build("torchvision", data)(data.splits["train"].inputs()).prediction.shape == (len(data.splits["train"]), 3)


def test_repeated_channels_are_domainbeds() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))
    weight = network[0].weight.detach().clone()
    adapt_channels(network, 5, "one")
    expected = torch.stack([weight[:, i % 3] for i in range(5)], 1)
    assert torch.equal(network[0].weight, expected)


def test_images_are_resized(tmp_path: Path) -> None:
    data = problem(size=20)
    model = build("torchvision", data, image_size=32).eval()
    x = data.splits["test"].inputs()
    resized = nn.functional.interpolate(IMAGENET.standardised(x), (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(model.features(x), model.features.network(resized))  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_b_16", "densenet121", "swin_t", "convnext_tiny"])
@pytest.mark.slow
def test_networks_of_torchvision(name: str) -> None:
    data = problem()
    outputs = build("torchvision", data, model=name, image_size=32).eval()(data.splits["test"].inputs())
    assert outputs.prediction.shape == (len(data.splits["test"]), 3)


@needs_timm
@pytest.mark.parametrize("name", ["resnet10t", "test_vit.r160_in1k", "vit_tiny_patch16_224"])
def test_networks_of_timm(name: str) -> None:
    data = problem()
    outputs = build("timm", data, model=name).eval()(data.splits["test"].inputs())
    assert outputs.prediction.shape == (len(data.splits["test"]), 3)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_contract_of_backbones(package: str) -> None:
    check_backbone(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_does_not_fit_is_one_line(package: str, tmp_path: Path) -> None:
    other, damaged, pickled = tmp_path / "other.pth", tmp_path / "damaged.safetensors", tmp_path / "pickled.pt"
    torch.save(plain("torchvision", "resnet34").state_dict(), other)
    damaged.write_bytes(b"nothing")
    torch.save({"model": nn.Linear(2, 2)}, pickled)
    torch.save([1, 2], tmp_path / "list.pt")
    for settings, message in (
        ({"model": "resnet81"}, "did you mean 'resnet18'"),
        ({"weights": str(other), "model": "resnet50"}, "are not those of resnet50: (they have no|.* is )"),
        ({"weights": str(damaged)}, "cannot be read"),
        ({"weights": str(pickled)}, "are no tensors by name"),
        ({"weights": str(tmp_path / "list.pt")}, "are no tensors by name"),
        ({"weights": str(tmp_path / "none.pth")}, "there is no file"),
        ({"weights": "imagenet"}, "it is none, default, or a file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            build(package, problem(), **settings)
        assert "\n" not in str(caught.value)


def test_the_body_learns_at_its_own_rate(tmp_path: Path) -> None:
    """One step of SGD: the head moves as without the setting, the body by a tenth of that."""
    data = problem(size=16)
    settings: dict[str, Any] = {
        "backbone.name": "torchvision", "backbone.freeze_batch_norm": True, "trainer.epochs": None, "trainer.steps": 1,
        "trainer.optimizer": "sgd", "trainer.learning_rate": 0.1, "trainer.measure_invariance": "off",
        "trainer.batch_size": 4, "trainer.dtype": "float64",
    }  # fmt: skip
    torch.manual_seed(0)
    moved = {}
    for name, more in (("same", {}), ("slow", {"trainer.learning_rate_of": {"features.*": 0.1}})):
        record = invbench.run("erm", data, settings=settings | more, out=tmp_path, progress=False)
        moved[name] = invbench.load_run(tmp_path / record.run_id).model.state_dict()
    from invbench.runs.resolve import from_spec
    from invbench.training.build import build_model, load_problem

    config = from_spec(record.spec)
    first = build_model(config, load_problem(config)).double().state_dict()
    for name in ("head.weight", "features.network.conv1.weight"):
        ratio = (moved["slow"][name] - first[name]).norm() / (moved["same"][name] - first[name]).norm()
        assert ratio.item() == pytest.approx(1.0 if name == "head.weight" else 0.1, rel=1e-6)


def test_unknown_parameters_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.learning_rate_of: no parameter matches 'body\.\*'"):
        invbench.run("erm", "spirals", settings={"trainer.learning_rate_of": {"body.*": 0.1}}, out=tmp_path)
