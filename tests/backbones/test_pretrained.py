"""Networks of torchvision and timm: what they compute, what is trained, and which files they take."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cells import objective_of
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import invbench
from invbench.backbones._pretrained import load_weights, read_weights
from invbench.core.backbone import couples_rows, features_rates
from invbench.core.data import Pixels, Problem, Split
from invbench.core.registry import BACKBONES
from invbench.core.task import Classification
from invbench.errors import CannotFuse, UserError
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig, resolve
from invbench.system import workarounds
from invbench.testing import check_backbone
from invbench.training.attempt import build_training
from invbench.training.build import load_problem
from invbench.training.fused.loop import FusedTraining
from invbench.training.loop import TrainingLoop

needs_timm = pytest.mark.skipif(not find_spec("timm"), reason="the extra timm is not installed")
PIXELS = Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def built(name: str, problem: Problem, **settings: Any) -> nn.Module:
    model: nn.Module = BACKBONES.load(name).parse(settings, "backbone").build(problem)
    return model


def images(channels: int = 3, size: int = 32, pixels: Pixels = PIXELS) -> Problem:
    split = Split(torch.randn(4, channels, size, size), torch.zeros(4, dtype=torch.long))
    return Problem({"train": split, "test": split}, Classification(5), "image", "synthetic", pixels=pixels)


def as_imagenet(x: Tensor) -> Tensor:
    """Undo the standardisation of `images`, and apply that of ImageNet."""
    pixels = x * torch.tensor([0.2, 0.25, 0.3])[:, None, None] + torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    return (pixels - MEAN[:, None, None]) / DEVIATION[:, None, None]


def plain(model: str = "resnet18") -> nn.Module:
    """Return a model of torchvision whose batch norm has statistics of its own."""
    network: nn.Module = workarounds.torchvision().models.get_model(model)
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def answer(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        features: Tensor = network(x)
        return features


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    """Save the weights of a resnet18, head included."""
    network, path = plain(), tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return network, path


def representation(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        features: Tensor = model.eval()(x).representation
        return features


@pytest.mark.parametrize("head", [True, False], ids=["with_head", "without"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("model", ["resnet18", pytest.param("mobilenet_v3_small", marks=pytest.mark.slow)])
def test_features_of_a_file_are_those_of_the_model(model: str, suffix: str, head: bool, tmp_path: Path) -> None:
    network, problem = plain(model), images()
    x = problem.splits["train"].x
    last = "fc" if model == "resnet18" else "classifier.3"
    state = {name: value for name, value in network.state_dict().items() if head or not name.startswith(f"{last}.")}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    mine = built("torchvision", problem, model=model, weights=str(path), image_size=32)
    network.set_submodule(last, nn.Identity())
    assert torch.equal(representation(mine, x), answer(network, as_imagenet(x)))


def test_other_numbers_of_channels(saved: tuple[nn.Module, Path]) -> None:
    """Grey images are repeated; else channel i has the weights, and the standardisation, of colour i modulo 3."""
    network, path = saved
    network.set_submodule("fc", nn.Identity())
    grey, five = images(1, pixels=Pixels()), images(5, pixels=Pixels())
    x = grey.splits["train"].x.repeat(1, 3, 1, 1)
    expected = answer(network, (x - MEAN[:, None, None]) / DEVIATION[:, None, None])
    settings = {"weights": str(path), "image_size": 32}
    assert torch.equal(representation(built("torchvision", grey, **settings), grey.splits["train"].x), expected)

    x, index = five.splits["train"].x, torch.tensor([0, 1, 2, 0, 1])
    first: Any = network.get_submodule("conv1")
    conv = nn.Conv2d(5, 64, kernel_size=7, stride=2, padding=3, bias=False)
    for i in range(5):
        conv.weight.data[:, i] = first.weight.data[:, i % 3]
    network.set_submodule("conv1", conv)
    expected = answer(network, (x - MEAN[index][:, None, None]) / DEVIATION[index][:, None, None])
    assert torch.equal(representation(built("torchvision", five, **settings), x), expected)


def test_images_are_resized_as_torchvision_does(saved: tuple[nn.Module, Path]) -> None:
    """To the size of the weights where nothing else is asked for."""
    network, path = saved
    network.set_submodule("fc", nn.Identity())
    problem = images()
    x = problem.splits["train"].x
    resize = workarounds.torchvision().transforms.functional.resize
    for size, settings in ((64, {"image_size": 64}), (16, {"image_size": 16}), (224, {})):
        features = representation(built("torchvision", problem, weights=str(path), **settings), x)
        assert torch.allclose(
            features, answer(network, resize(as_imagenet(x), [size, size], antialias=True)), atol=1e-4
        )
    drawn = built("torchvision", problem)
    assert drawn.features.shape == (32, 32)


def test_dropout_and_frozen_batch_norm_are_domainbeds() -> None:
    """Its ResNet: dropout of the features, and batch norm in evaluation mode in training, its weights trained."""
    problem = images()
    x = problem.splits["train"].x
    model: Any = built("torchvision", problem, dropout=0.3, freeze_batch_norm=True).train()
    body: Any = model.features[0]
    before = {name: value.clone() for name, value in body.named_buffers()}
    torch.manual_seed(1)
    out = model(x)
    torch.manual_seed(1)
    assert torch.equal(out.representation, F.dropout(body(x), 0.3))
    assert torch.equal(out.prediction, model.head(out.representation))
    assert torch.allclose(body(x), answer(body.eval(), x))
    assert all(torch.equal(value, before[name]) for name, value in body.named_buffers())
    out.prediction.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not couples_rows(model.train())
    assert couples_rows(built("torchvision", problem))


@pytest.mark.slow
def test_stochastic_depth_is_torchvisions_and_can_be_mapped(tmp_path: Path) -> None:
    """Whole rows are dropped, as often; the others are divided by the probability of staying."""
    ops = workarounds.torchvision().ops
    model: Any = built("torchvision", images(), model="convnext_tiny")
    layer = model.features.network.features[7][2].stochastic_depth
    assert layer.p == workarounds.torchvision().models.get_model("convnext_tiny").features[7][2].stochastic_depth.p
    layer.p = 0.25
    x = torch.rand(2000, 3, 2, 2) + 1
    for each in (layer, ops.StochasticDepth(0.25, "row")):
        ratio = (each.train()(x) / x).flatten(1)
        assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))
        assert torch.allclose(ratio[ratio > 0], torch.tensor(1 / 0.75))
        assert abs((ratio[:, 0] == 0).float().mean() - 0.25) < 0.05, each
        assert torch.equal(each.eval()(x), x)
    config = cell("and_mask", "colored_digits", backbone__model="convnext_tiny", backbone__image_size=64)
    training = training_of(config, tmp_path)
    assert training.objective.strategy == "vmap"
    training.step(training.next_batch())


def test_a_frozen_body_stays_as_it_is(tmp_path: Path) -> None:
    settings = {"backbone.name": "torchvision", "backbone.freeze": True, "trainer.epochs": None, "trainer.steps": 2}
    record = invbench.run("erm", "digits", settings=settings, out=tmp_path)
    trained = invbench.load_run(tmp_path / record.run_id).model.state_dict()
    first = training_of(resolve("erm", "digits", 0, settings), tmp_path).model
    for name, value in first.state_dict().items():
        assert torch.equal(value, trained[name]) == name.startswith("features."), name
    assert record.engine["parameters"] == 512 * 10 + 10
    assert "weights" not in record.engine


def cell(method: str, dataset: str, seed: int = 0, **settings: Any) -> RunConfig:
    """Return a run of two steps of a resnet18 on small images. Keyword `trainer__l1` stands for `trainer.l1`."""
    short = {"backbone.name": "torchvision", "trainer.epochs": None, "trainer.steps": 2, "trainer.batch_size": 8}
    return resolve(method, dataset, seed, short | {name.replace("__", "."): v for name, v in settings.items()})


def training_of(config: RunConfig, path: Path) -> TrainingLoop:
    options = Options("cpu", path)
    return build_training(config, load_problem(config), RunFolder(path), torch.device("cpu"), "", options)


def test_the_body_learns_at_its_own_rate(tmp_path: Path) -> None:
    """A step of gradient descent with decay and l1: rate times gradient for the head, a tenth of it for the body."""
    numbers: dict[str, Any] = {"trainer__learning_rate": 0.5, "trainer__weight_decay": 0.01, "trainer__l1": 0.001}
    kind: dict[str, Any] = {"trainer__optimizer": "sgd", "trainer__dtype": "float64"}
    training = training_of(cell("erm", "digits", backbone__body_learning_rate=0.1, **numbers, **kind), tmp_path)
    before = {name: value.detach().clone() for name, value in training.parameters.items()}
    training.step(training.next_batch())
    assert training.last is not None
    for name, value in training.parameters.items():
        rate = 0.5 if name.startswith("head.") else 0.05
        gradient = training.last.gradients[name] + 0.001 * before[name].sign() + 0.01 * before[name]
        assert torch.allclose(value, before[name] - rate * gradient, rtol=1e-10, atol=1e-12), name
    of_body = {f"0.{name}" for name in before if name.startswith("features.")}
    assert features_rates(nn.Sequential(training.model)).keys() == of_body


@pytest.mark.parametrize("frozen", [pytest.param(False, marks=pytest.mark.slow), True])
def test_runs_together_train_as_alone(frozen: bool, saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    """With the rate of the body, or with the same frozen body; those that were drawn differ."""
    settings: dict[str, Any] = {"trainer__optimizer": "sgd", "trainer__dtype": "float64"}
    settings |= {"backbone__freeze": True} if frozen else {"backbone__body_learning_rate": 0.1}
    file = {"backbone__weights": str(saved[1]), "backbone__image_size": 8, "backbone__freeze_batch_norm": True}
    configs = [cell("erm", "digits", seed, **settings, **file) for seed in (0, 1)]
    together = FusedTraining([training_of(config, tmp_path) for config in configs])
    together.step()
    together.step()
    together.unstack_runs()
    for config, fused in zip(configs, together.trainings, strict=True):
        alone = training_of(config, tmp_path)
        alone.step(alone.next_batch())
        alone.step(alone.next_batch())
        for name, value in alone.parameters.items():
            assert torch.allclose(fused.parameters[name], value, rtol=1e-8, atol=1e-10), name
    if frozen:
        with pytest.raises(CannotFuse, match="the parts of their networks that are not trained differ"):
            FusedTraining([training_of(cell("erm", "digits", seed, **settings), tmp_path) for seed in (0, 1)])


def test_with_frozen_batch_norm_all_strategies_agree(tmp_path: Path) -> None:
    steps = []
    for strategy in ("joint", "loop", "vmap"):
        config = cell("and_mask", "colored_digits", backbone__freeze_batch_norm=True, trainer__strategy=strategy)
        training = training_of(config, tmp_path)
        assert training.objective.strategy == strategy
        training.step(training.next_batch())
        objective, parameters, batch, state = objective_of(config, strategy)
        assert len(batch.env) > 1
        steps.append(objective.step(parameters, batch, state).gradients)
    for step in steps[1:]:
        assert all(torch.allclose(step[name], value, atol=1e-10) for name, value in steps[0].items())
    with pytest.raises(UserError, match="batch normalisation couples all rows"):
        training_of(cell("and_mask", "colored_digits", trainer__strategy="vmap"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet81"}, r"^setting 'backbone.model' is 'resnet81'; did you mean 'resnet18'\?$"),
        ({"model": "fcn_resnet50"}, "setting 'backbone.model' is 'fcn_resnet50'"),
        ({"model": "inception_v3"}, "cannot be made for images of 3 channels and 32 x 32 pixels .*image_size"),
        ({"model": "vit_b_16", "image_size": 40}, "indivisible by patch size"),
        ({"weights": "nowhere.pth"}, "there is no file nowhere.pth; give none, default or a path"),
        ({"weights": "imagenet"}, "imagenet is no .pth, .pt or .safetensors file"),
        ({"weights": ""}, "backbone.weights: it is empty"),
        ({"weights": "a" * 300 + ".pth"}, "is no path"),
        ({"freeze": True, "body_learning_rate": 0.1}, "leave out freeze or body_learning_rate"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        built("torchvision", images(), **settings)
    assert "\n" not in str(error.value)


def without_first(state: dict[str, Tensor]) -> Any:
    return {name: value for name, value in state.items() if name != "layer1.0.conv1.weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_first, "lacks layer1.0.conv1.weight, the first of 1 tensors"),
        (lambda state: state | {"more.weight": torch.ones(1)}, "has more.weight, the first of 1 tensors that the"),
        (lambda state: state | {"conv1.weight": torch.ones(64, 1, 7, 7)}, r"has conv1.weight as \(64, 1, 7, 7\) of"),
        (lambda state: state | {"conv1.weight": state["conv1.weight"].int()}, "as .* of int32, not .* of real numbers"),
        (lambda state: state | {"bn1.weight": state["bn1.weight"] / 0}, "are not finite in bn1.weight, the first of 1"),
        (lambda state: state | {"bn1.weight": state["bn1.weight"].to("meta")}, "packed or absent real numbers"),
        (lambda state: state | {"bn1.weight": state["bn1.weight"].to_sparse()}, "packed or absent real numbers"),
        (lambda state: {"state_dict": state}, "holds no table of tensors by name"),
        (lambda state: list(state.values()), "holds no table of tensors by name"),
        (lambda state: state | {"fc.weight": torch.ones(60_000_000)}, "MiB, more than the"),
        (lambda state: Path, "cannot be read as weights"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(
    change: Callable[[dict[str, Tensor]], Any], message: str, saved: tuple[nn.Module, Path]
) -> None:
    network, path = saved
    torch.save(change(dict(network.state_dict())), path)
    with pytest.raises(UserError, match=message) as error:
        built("torchvision", images(), weights=str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    """One that is cut, or has another byte, is refused in one line or read as what it says; nothing warns."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    load_weights(network, read_weights(path, network), "conv", path)
    refused = 0
    for position in range(0, len(content), len(content) // 40):
        flipped = content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]
        for damaged in (content[:position], flipped):
            path.write_bytes(damaged)
            try:
                load_weights(network, read_weights(path, network), "conv", path)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused >= 40, "all that were cut"


@pytest.mark.slow
def test_a_run_keeps_the_sum_of_its_weights_and_is_made_anew_when_they_change(
    saved: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    network, path = saved
    settings = {
        "backbone.name": "torchvision", "backbone.weights": str(path), "backbone.image_size": 16,
        "trainer.epochs": None, "trainer.steps": 1,
    }  # fmt: skip

    def record() -> invbench.Record:
        return invbench.run("erm", "digits", settings=settings, out=tmp_path)

    first = record()
    assert first.engine["weights"] == {"name": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    folder = tmp_path / first.run_id
    assert record() == first
    assert not (folder / "record.previous.json").exists()

    network.get_parameter("conv1.weight").data *= 2
    torch.save(network.state_dict(), path)
    second = record()
    assert (folder / "record.previous.json").exists()
    assert second.engine["weights"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert second.metrics != first.metrics
    assert len(invbench.load_results(tmp_path)) == 1
    path.unlink()
    assert record() == second


def test_published_weights_come_from_the_cache(
    saved: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    problem, (_, path) = images(), saved
    file = tmp_path / "home" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"\(no network\); put https://.*-f37072fd.pth at .*-f37072fd.pth, or set"):
        built("torchvision", problem, weights="default")
    path.rename(file)
    model = built("torchvision", problem, weights="default")
    assert model.weights == {"name": "default", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert model.features.shape == (224, 224)


def test_old_names_in_densenets(tmp_path: Path) -> None:
    network = plain("densenet121")
    state = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for name, value in network.state_dict().items()
    }
    assert state.keys() != network.state_dict().keys()
    torch.save(state, tmp_path / "old.pth")
    model = built("torchvision", images(), model="densenet121", weights=str(tmp_path / "old.pth"), image_size=32)
    network.set_submodule("classifier", nn.Identity())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(answer(model.features.network.eval(), x), answer(network, x))  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "model"),
    [
        ("torchvision", "squeezenet1_1"),
        ("torchvision", "efficientnet_b0"),
        pytest.param("timm", "test_vit.r160_in1k", marks=needs_timm),
        pytest.param("timm", "test_efficientnet", marks=needs_timm),
    ],
)
def test_other_models_keep_the_contract(backbone: str, model: str) -> None:
    for more in ({}, {"freeze": True}, {"freeze_batch_norm": True, "dropout": 0.5, "image_size": 64}):
        check_backbone(backbone, {"model": model, **more})


@needs_timm
@pytest.mark.parametrize("model", ["resnet10t", "test_vit.r160_in1k", "vit_tiny_patch16_224"])
def test_features_of_timm(model: str, tmp_path: Path) -> None:
    import timm

    network: Any = timm.create_model(model).eval()
    path, problem = tmp_path / "weights.safetensors", images()
    save_file(network.state_dict(), path)
    features = representation(built("timm", problem, model=model, weights=str(path)), problem.splits["train"].x)
    network.reset_classifier(0)
    expected = network.default_cfg
    pixels = PIXELS.restored(problem.splits["train"].x)
    pixels = F.interpolate(pixels, expected["input_size"][1:], mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(expected[name])[:, None, None] for name in ("mean", "std"))
    assert torch.equal(features, answer(network, (pixels - mean) / deviation))


@needs_timm
def test_published_weights_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder of the Hugging Face Hub; one line where they are not there."""
    import timm

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = {"model": "test_resnet", "weights": "default", "image_size": 32}
    with pytest.raises(
        UserError, match=r"cannot be downloaded .*https://huggingface.co/timm/test_resnet.r160_in1k/resolve"
    ):
        built("timm", images(), **settings)
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    network: Any = timm.create_model("test_resnet").eval()
    problem = images()
    save_file(network.state_dict(), folder / "model.safetensors")
    model = built("timm", problem, **settings)
    network.reset_classifier(0)
    x = problem.splits["train"].x
    assert torch.equal(representation(model, x), answer(network, (PIXELS.restored(x) - 0.5) / 0.5))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert model.weights == {"name": "default", "sha256": digest}


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    BACKBONES.load("timm")
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("invbench.backbones.timm._timm", sys.modules["invbench.backbones.timm"]._timm.__wrapped__)
    with pytest.raises(UserError, match=r"timm needs a package that is missing .*pip install 'invbench\[timm\]'"):
        built("timm", images())


def test_loading_the_classes_imports_no_package() -> None:
    program = """
import sys
from invbench.core.registry import BACKBONES
for name in ("torchvision", "timm"):
    BACKBONES.load(name).parse({"weights": "default"}, "backbone")
sys.exit(any(name in sys.modules for name in ("torchvision", "timm", "huggingface_hub")))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
