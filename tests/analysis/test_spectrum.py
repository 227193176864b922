"""The Hessian's spectrum against dense ones, and its effective dimension."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cells import small_config
from conftest import Bench
from torch import nn
from torch.func import functional_call, grad, jacrev

from invbench.analysis import spectrum as module
from invbench.analysis.spectrum import Bulk, Hessian, Spectrum, held_still, some_rows, spectrum
from invbench.core.task import Regression
from invbench.evaluation.metrics import outputs_of
from invbench.results.rounding import rounded
from invbench.runs.options import Options
from invbench.training.restored import RestoredRun, load_run
from invbench.training.runner import run_one

ALPHAS = (1e-3, 1e-2, 1e-1, 1.0)


def run_of(out: Path, method: str, dataset: str, **settings: object) -> RestoredRun:
    """Train a small run in double precision and load it."""
    config = small_config(method, dataset, 0, trainer__dtype="float64", **settings)
    run_one(config, Options("cpu", out))
    return load_run(out / config.spec.run_id)


@pytest.fixture(scope="module")
def spirals(tmp_path_factory: pytest.TempPathFactory) -> RestoredRun:
    """Return a run with 593 weights, trained until the risk is low."""
    settings = {"backbone__width": 16, "trainer__steps": 300, "trainer__learning_rate": 1e-2}
    return run_of(tmp_path_factory.mktemp("spirals"), "erm", "spirals", **settings)


def dense(run: RestoredRun, examples: int | None = None) -> np.ndarray:
    """Compute the same Hessian by torch's own derivatives."""
    seed = run.config.spec.seed
    split = some_rows(run.problem.splits["train"], examples, seed)
    network, x = held_still(run.model, split, seed)
    weights = dict(network.named_parameters())
    flat = torch.cat([value.detach().flatten() for value in weights.values()])

    def risk(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([value.numel() for value in weights.values()])
        named = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
        return run.problem.task.losses(functional_call(network, named, (x,)).prediction, split.y).mean()

    return jacrev(grad(risk), chunk_size=64)(flat).numpy()


def dimension(eigenvalues: np.ndarray, alpha: float) -> float:
    positive = eigenvalues[eigenvalues > 0]
    return float((positive / (positive + alpha)).sum())


def test_small_networks_are_exact(spirals: RestoredRun) -> None:
    """Of all eigenvalues nothing is estimated."""
    estimate, exact = spectrum(spirals), np.linalg.eigvalsh(dense(spirals))
    np.testing.assert_allclose(estimate.eigenvalues, exact[::-1], atol=1e-9)
    for alpha in ALPHAS:
        assert estimate.effective_dimension(alpha) == (pytest.approx(dimension(exact, alpha), rel=1e-6), 0)


def test_the_estimate_is_that_of_the_dense_hessian(spirals: RestoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1 % where enough is asked for, and otherwise within what it says of itself."""
    monkeypatch.setattr(module, "DENSE", 0)
    exact = np.linalg.eigvalsh(dense(spirals))[::-1]
    counted: list[int] = []
    good = spectrum(spirals, top=100, steps=50, vectors=2, on_progress=counted.append)
    assert counted[-1] < len(exact)
    np.testing.assert_allclose(good.eigenvalues, exact[:100], rtol=1e-4)
    rough = spectrum(spirals, top=10, steps=20, vectors=8)
    for alpha in ALPHAS:
        truth = dimension(exact, alpha)
        assert good.effective_dimension(alpha)[0] == pytest.approx(truth, rel=0.01)
        value, error = rough.effective_dimension(alpha)
        assert abs(value - truth) < 4 * error
        assert error < 0.1 * truth


def test_an_augmentation_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are those of the dense Hessian of the network within, at inputs that do not change any more."""
    run = run_of(tmp_path, "augerino", "digits", backbone__name="simple_conv", backbone__width=1, trainer__steps=3)
    split = some_rows(run.problem.splits["train"], 40, 0)
    first, second = (held_still(run.model, split, 0) for _ in range(2))
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], split.x)
    hessian = Hessian(*first, split.y, run.problem.task, int)
    exact = dense(run, 40)
    vectors = np.random.default_rng(0).standard_normal((3, len(exact)))
    np.testing.assert_allclose([hessian.product(vector) for vector in vectors], vectors @ exact, atol=1e-9)
    with torch.no_grad():
        losses = run.problem.task.losses(outputs_of(first[0], first[1]).prediction, split.y)
    assert hessian.risk == pytest.approx(losses.mean().item())
    monkeypatch.setattr(module, "DENSE", 0)
    assert "width.rotation" in spectrum(run, top=2, steps=2, vectors=1, examples=40).widths


def test_an_exhausted_space_ends_the_process() -> None:
    """Three different eigenvalues: three steps find them, with the weights that the vector gives them."""
    eigenvalues = np.repeat([5.0, 2.0, -1.0], [1, 10, 20])
    start = np.random.default_rng(1).standard_normal(31)
    quadrature = module._lanczos(lambda v: eigenvalues * v, start, np.zeros((31, 0)), 12)
    share = np.square(start) / np.square(start).sum()
    assert np.sort(quadrature.values) == pytest.approx([-1, 2, 5])
    weights = dict(zip(np.round(quadrature.values), quadrature.weights, strict=True))
    assert weights == pytest.approx({value: share[eigenvalues == value].sum() for value in (5, 2, -1)})
    without = np.eye(31)[:, :1]
    rest = module._lanczos(lambda v: eigenvalues * v, start, without, 12)
    assert np.sort(rest.values) == pytest.approx([-1, 2]), "nothing is left of what was taken out"


def test_without_curvature_there_are_no_directions() -> None:
    """Absolute errors of a linear model: the Hessian is zero. Negative eigenvalues do not count."""
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    flat = Hessian(nn.Linear(3, 1).double(), x, y, Regression("", loss="absolute"), int)
    assert not flat.product(np.ones(4)).any()
    estimate = Spectrum(
        weights=10, examples=1, risk=0.0, eigenvalues=[1.0, -3.0], bulk=[Bulk(values=[-2.0], weights=[1.0])], widths={}
    )
    assert estimate.effective_dimension(1.0)[0] == 0.5


def test_the_command(bench: Bench, tmp_path: Path) -> None:
    bench("run", "-m", "erm", "-d", "spirals", "--set", "trainer.steps=5", "--set", "backbone.width=32")
    command = ["analyze", "spectrum", "results", "--examples", "50", "--alpha", "0.1", "--alpha", "1", "--top", "5"]
    status, table, _ = bench(*command, "--steps", "4", "--vectors", "2", "--out", "spectrum.png")
    assert status == 0
    assert "N_eff(0.1)" in table
    assert (tmp_path / "spectrum.png").stat().st_size > 10_000
    (path,) = (tmp_path / "results").glob("*/spectrum.json")
    kept = Spectrum.model_validate_json(path.read_text())
    assert kept.examples == 50
    assert f"{kept.weights} weights" in table
    assert rounded(*kept.effective_dimension(1.0)) in table
    assert bench(*command, "--alpha", "0")[2] == "error: --alpha must be above 0\n"
    status, _, said = bench("analyze", "spectrum", "nowhere")
    assert status == 2
    assert "nowhere" in said
