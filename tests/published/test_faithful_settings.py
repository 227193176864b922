"""What the shipped sweeps and claims say that they run, against what is resolved: the sources' settings, once more."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from invbench.published.claims import sources
from invbench.published.verdicts import sweep_of
from invbench.runs.config import sweep_names
from invbench.runs.resolve import RunConfig, resolve
from invbench.sweeps.definition import Sweep

Facts = dict[str, Any]
OURS = ("smoke", "tour", "subpopulation", "symmetry", "power")
"""Sweeps that are no study of a paper's."""


def linear(learning_rate: float, weight_decay: float, lambda_: float) -> Facts:
    """Convert (1-λ) mean R + λ ΣP with weight decay w to R + weight · mean P, for three environments."""
    return {
        "method.weight": pytest.approx(3 * lambda_ / (1 - lambda_), rel=2e-3),
        "trainer.learning_rate": pytest.approx(learning_rate),
        "trainer.weight_decay": pytest.approx(weight_decay / (1 - lambda_), rel=2e-2),
        "method.classifier": "scale_and_offset",
        "method.anneal_steps": 0,
    }


def masked(learning_rate: float, weight_decay: float, threshold: float) -> Facts:
    """Return the settings of the linear unit tests' AND-mask."""
    return {
        "trainer.learning_rate": learning_rate,
        "trainer.weight_decay": weight_decay,
        "trainer.optimizer": "sgd",
        "method.threshold": threshold,
        "method.strict": True,
        "method.normalise": True,
        "method.scale_by_inverse_sparsity": False,
    }


class Other:
    """What a pattern has where any value but one will do."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return other != self.value

    __hash__ = None  # type: ignore[assignment]


DOMAINBED = {"dataset": "colored_mnist", "dataset.variant": "domainbed"}
PAPER = {"dataset": "colored_mnist", "dataset.variant": "irm"}
LINEAR = {"dataset": "linear_unit_tests"}
ANNEALED = {"method.anneal_steps": 500, "method.reset_optimizer": True, "method.convention": "plain"}
# DomainBed b93c22a, hparams_registry.py: small images, default hyper-parameters.
SMALL_IMAGES: Facts = {
    "trainer.steps": 5001,
    "trainer.batch_size": 64,
    "trainer.optimizer": "adam",
    "trainer.weight_decay": 0.0,
    "trainer.schedule": "constant",
    "backbone": "domainbed_cnn",
    "backbone.width": 64,
}
SETTINGS: list[tuple[Facts, Facts]] = [
    (DOMAINBED, SMALL_IMAGES),
    ({"dataset": "rotmnist", "dataset.variant": "domainbed"}, SMALL_IMAGES | {"trainer.learning_rate": 1e-3}),
    (DOMAINBED | {"method": Other("adrmx")}, {"trainer.learning_rate": 1e-3}),
    (
        DOMAINBED | {"method": "adrmx"},
        {
            "trainer.learning_rate": 3e-3,
            "trainer.betas": [0.5, 0.9],
            "method.environment_weight": 1.0,
            "method.remix_weight": 1.0,
            "method.contrast_weight": 1.0,
            "method.critic_weight": 0.75,
            "method.critic_steps": 2,
            "method.critic_width": 256,
            "method.critic_depth": 8,
            "method.critic_learning_rate": 3e-3,
            "method.critic_momentum": 0.5,
        },
    ),
    (
        DOMAINBED | {"method": "eqrm"},
        {"method.quantile": 0.75, "method.burn_in": 2500, "method.learning_rate_after": 1e-6},
    ),
    (DOMAINBED | {"method": "causirl"}, {"method.weight": 1.0}),
    (
        DOMAINBED | {"method": "rdm"},
        {
            "method.weight": 5.0,
            "method.variance_weight": 0.004,
            "method.anneal_steps": 1500,
            "method.weight_before": 0.0,
            "method.learning_rate_after": 1.5e-5,
        },
    ),
    (
        DOMAINBED | {"method": "cad"},
        {
            "method.weight": 0.1,
            "method.temperature": 0.1,
            "method.flipped": True,
            "method.normalised": False,
        },
    ),
    (
        DOMAINBED | {"method": "dann"},
        {
            "method.weight": 1.0,
            "method.critic_steps": 1,
            "method.gradient_penalty": 0.0,
            "method.critic_width": 256,
            "method.critic_depth": 2,
            "method.critic_learning_rate": 1e-3,
            "method.critic_momentum": 0.5,
            "trainer.betas": [0.5, 0.9],
        },
    ),
    (DOMAINBED | {"method": "mldg"}, {"method.weight": 1.0, "method.meta_test": 2}),
    (DOMAINBED | {"method": "sagnet"}, {"method.weight": 0.1, "method.critic_learning_rate": 1e-3}),
    (
        DOMAINBED | {"method": "transfer"},
        {"method.weight": 1.0, "method.radius": 2.0, "method.ascent_steps": 10, "method.ascent_rate": 1e-3},
    ),
    (
        DOMAINBED | {"method": "trm"},
        {"method.follow_weight": 1e-4, "method.group_rate": 1e-2, "method.warm_up": 200, "method.inner_steps": 30},
    ),
    (
        DOMAINBED | {"method": "urm"},
        {
            "method.weight": 0.1,
            "method.activation": "tanh",
            "method.critic_depth": 1,
            "method.critic_learning_rate": 1e-3,
        },
    ),
    (DOMAINBED | {"method": "mixup"}, {"method.alpha": 0.2}),
    (DOMAINBED | {"method": "rsc"}, {"method.feature_share": 1 / 3, "method.batch_share": 1 / 3}),
    (
        DOMAINBED | {"method": "irmv1"},
        ANNEALED
        | {
            "method.weight": 100.0,
            "method.weight_before": 1.0,
            "method.estimate": "unbiased",
            "method.classifier": "scale",
        },
    ),
    (DOMAINBED | {"method": "vrex"}, ANNEALED | {"method.weight": 10.0, "method.weight_before": 1.0}),
    (DOMAINBED | {"method": "group_dro"}, {"method.rate": 0.01}),
    (
        DOMAINBED | {"method": "and_mask"},
        {
            "method.threshold": 1.0,
            "method.scale_by_inverse_sparsity": True,
            "method.strict": False,
            "method.rule": "mask",
            "method.normalise": False,
        },
    ),
    (DOMAINBED | {"method": "sand_mask"}, {"method.threshold": 1.0, "method.steepness": 10.0}),
    (DOMAINBED | {"method": "iga"}, {"method.weight": 1000.0, "method.anneal_steps": 0, "method.convention": "plain"}),
    (
        DOMAINBED | {"method": "fishr"},
        ANNEALED
        | {"method.weight": 1000.0, "method.weight_before": 0.0, "method.anneal_steps": 1500, "method.memory": 0.95},
    ),
    (
        DOMAINBED | {"method": "ib_erm"},
        ANNEALED | {"method.weight": 100.0, "method.weight_before": 0.0, "method.on": "representation"},
    ),
    (
        DOMAINBED | {"method": "ib_irm"},
        ANNEALED
        | {
            "method.weight": 100.0,
            "method.weight_before": 1.0,
            "method.estimate": "unbiased",
            "method.bottleneck_weight": 100.0,
            "method.bottleneck_anneal_steps": 500,
            "method.on": "representation",
        },
    ),
    (DOMAINBED | {"method": "sd"}, {"method.weight": 0.1}),
    (DOMAINBED | {"method": "coral"}, {"method.weight": 1.0, "method.anneal_steps": 0}),
    (DOMAINBED | {"method": "mmd"}, {"method.weight": 1.0, "method.anneal_steps": 0}),
    (DOMAINBED | {"method": "fish"}, {"method.rate": 0.5}),
    # The IRM paper's coloured MNIST; l2 |θ|² is a weight decay of twice l2.
    (PAPER, {"trainer.optimizer": "adam"}),
    (
        PAPER | {"method": "erm"},
        {
            "trainer.steps": 501,
            "trainer.batch_size": None,
            "trainer.learning_rate": 1e-3,
            "trainer.weight_decay": 2e-3,
            "backbone.width": 256,
            "backbone.depth": 2,
            "backbone.initialisation": "xavier",
        },
    ),
    (
        PAPER | {"method": "irmv1"},
        {
            "method.weight": 91257.18613115903,
            "method.anneal_steps": 190,
            "method.weight_before": 1.0,
            "method.convention": "rescaled",
            "method.reset_optimizer": False,
            "method.estimate": "biased",
            "trainer.steps": 501,
            "backbone.width": 390,
            "trainer.learning_rate": 0.0004898536566546834,
            "trainer.weight_decay": pytest.approx(2 * 0.00110794568),
        },
    ),
    (
        PAPER | {"method": "oracle"},
        {
            "dataset.grayscale": True,
            "backbone.width": 83,
            "trainer.steps": 101,
            "trainer.learning_rate": 0.00281715,
            "trainer.weight_decay": 0.00172054,
        },
    ),
    # R_1 + R_2 + l2 |θ|² + β (R_1 - R_2)², β of 1, then 1e4; half of it is mean + 2 β variance + l2 |θ|² / 2.
    (
        PAPER | {"method": "vrex"},
        {
            "method.weight": 2e4,
            "method.weight_before": 2.0,
            "method.anneal_steps": 100,
            "method.convention": "rescaled",
            "method.reset_optimizer": False,
            "trainer.weight_decay": 1e-3,
            "trainer.steps": 501,
            "backbone.width": 256,
        },
    ),
    (
        PAPER | {"method": "irm_games"},
        {
            "trainer.epochs": 25,
            "trainer.batch_size": 256,
            "trainer.learning_rate": 2.5e-4,
            "trainer.weight_decay": 2 * 0.00125,
            "trainer.stop_below": 0.6,
            "trainer.stop_after": 100,
        },
    ),
    # Linear unit tests: 10,000 full-batch steps; what the searches selected, as its results say.
    (LINEAR, {"trainer.steps": 10000, "trainer.batch_size": None, "backbone": "linear", "backbone.bias": True}),
    (
        LINEAR | {"method": "erm", "dataset.example": "example1"},
        {"trainer.learning_rate": 6.95e-4, "trainer.weight_decay": 0.0080},
    ),
    (LINEAR | {"method": "irmv1", "dataset.example": "example1"}, linear(1.61e-4, 1.6e-5, 0.667)),
    (LINEAR | {"method": "irmv1", "dataset.example": "example2"}, linear(0.00392, 1.7e-6, 0.887)),
    (LINEAR | {"method": "irmv1", "dataset.example": "example2s"}, linear(0.00647, 0.00115, 0.928)),
    (LINEAR | {"method": "irmv1", "dataset.example": "example3"}, linear(6.95e-4, 0.0080, 0.955)),
    (LINEAR | {"method": "irmv1", "dataset.example": "example3s"}, linear(0.0011, 0.0068, 0.992)),
    (LINEAR | {"method": "and_mask", "dataset.example": "example1"}, masked(0.1537, 1.96e-5, 0.952)),
    (LINEAR | {"method": "and_mask", "dataset.example": "example1s"}, masked(0.4189, 0.0673, 0.938)),
    (LINEAR | {"method": "and_mask", "dataset.example": "example2s"}, masked(0.00484, 0.760, 0.923)),
    (LINEAR | {"method": "and_mask", "dataset.example": "example3s"}, masked(0.00377, 0.0716, 0.942)),
    (LINEAR | {"method": "iga"}, {"method.weight": 1000.0}),
]
SETTINGS += [
    # AND-mask: run_synthetic.py and its README's command; the notebook's lr 0.3 on half the squared error.
    (
        {"dataset": "spirals"},
        {
            "dataset.environments": 16,
            "dataset.signature_dimensions": 16,
            "trainer.epochs": 150,
            "trainer.batch_size": 256,
            "trainer.optimizer": "adam",
            "trainer.learning_rate": 1e-2,
            "trainer.weight_decay": 1e-3,
            "trainer.milestones": [0.75],
            "backbone.width": 256,
            "backbone.depth": 3,
        },
    ),
    ({"dataset": "spirals", "method": "and_mask"}, {"method.threshold": 1.0, "method.strict": False}),
    (
        {"dataset": "and_mask_regression"},
        {
            "trainer.steps": 1000,
            "trainer.optimizer": "sgd",
            "trainer.learning_rate": 0.3 / 2,
            "trainer.decay": 0.9995,
            "trainer.weight_decay": 2 * 0.01,
            "trainer.weight_decay_order": "after",
            "backbone.initial_deviation": 0.1,
        },
    ),
    (
        {"dataset": "cifar10", "method": "and_mask"},
        {
            "dataset.random_labels_fraction": 1.0,
            "trainer.epochs": 80,
            "trainer.batch_size": 1,
            "trainer.environments_per_step": 80,
            "trainer.learning_rate": 5e-4,
            "trainer.weight_decay": 1e-6,
            "trainer.milestones": [0.75],
            "method.scale_by_inverse_sparsity": True,
            "backbone": "resnet9",
        },
    ),
    # Adaptive regularisation: reg_strength 1, err_strength 1e-5, that is 1e-5 R + P.
    (
        {"dataset": "irm_regression"},
        {
            "trainer.steps": 30000,
            "trainer.batch_size": None,
            "trainer.optimizer": "adam",
            "trainer.learning_rate": 1e-3,
            "backbone": "linear",
            "backbone.bias": False,
        },
    ),
    (
        {"dataset": "irm_regression", "method": "irmv1"},
        {"method.weight": 1e5, "method.convention": "divided", "method.anneal_steps": 0},
    ),
    # The IRM paper's chain: r ΣR + (1-r) Σ mean_d (dR/dw_d)², so λ = (1-r) / (10 r).
    (
        {"dataset": "chain_sem", "method": "irmv1"},
        {
            "trainer.steps": 100_000,
            "trainer.learning_rate": 1e-3,
            "dataset.scales": [0.2, 2.0],
            "method.classifier": "head",
            "method.convention": "divided",
            "method.anneal_steps": 0,
            "backbone.representation": True,
        },
    ),
    # Augerino: conv13 of 128 and 200 epochs on CIFAR-10, 500 of batches of 75 on QM9, 20 on Mario and Iggy.
    ({"dataset": "cifar10", "method": "erm"}, {"trainer.epochs": 200, "trainer.batch_size": 128, "backbone": "conv13"}),
    ({"dataset": "cifar10", "method": "augerino"}, {"trainer.epochs": 200, "method.learning_rate": 1e-2}),
    (
        {"dataset": "qm9"},
        {
            "trainer.epochs": 500,
            "trainer.batch_size": 75,
            "trainer.learning_rate": 3e-3,
            "trainer.warmup": 0.01,
            "trainer.schedule": "cosine",
            "backbone": "point_resnet",
            "backbone.width": 1536,
        },
    ),
    ({"dataset": "qm9", "method": "augerino"}, {"method.regularisation": 1e-3}),
    (
        {"dataset": "mario_iggy", "method": "augerino"},
        {"trainer.epochs": 20, "trainer.batch_size": 128, "trainer.learning_rate": 1e-2, "method.initial_width": -5},
    ),
    # Tan's toy: λ = 10, three layers of 32, 5,000 steps at 1e-4 on batches of 512.
    ({"dataset": "mi_toy"}, {"trainer.steps": 5000, "trainer.batch_size": 512, "trainer.learning_rate": 1e-4}),
    (
        {"dataset": "mi_toy", "method": "mutual_information"},
        {"method.weight": 10, "method.critic_learning_rate": 1e-3, "method.critic_steps": 4, "method.critic_width": 32},
    ),
    # Pivot: 50 epochs of 585 batches, then 200 steps, each after an epoch of the adversary.
    (
        {"dataset": "pivot"},
        {
            "trainer.steps": 50 * 585 + 200,
            "trainer.batch_size": 128,
            "trainer.learning_rate": 1e-2,
            "method.pretrain_steps": 50 * 585,
            "method.critic_warm_up": 20 * 585,
            "method.critic_steps": 585,
        },
    ),
    # The commands of JTT's README; its data loader adds 100 or 50 copies of the error set to all examples.
    (
        {"method": "jtt", "dataset.table": "waterbird_complete95_forest2water2/metadata.csv"},
        {
            "trainer.optimizer": "sgd",
            "trainer.momentum": 0.9,
            "trainer.learning_rate": 1e-5,
            "trainer.batch_size": 64,
            "trainer.weight_decay": 1.0,
            "trainer.epochs": 300,
            "method.first_share": 60 / 300,
            "method.upweight": 101,
            "backbone.model": "resnet50",
        },
    ),
    (
        {"method": "jtt", "dataset.table": "celeba/metadata_celeba.csv"},
        {
            "trainer.learning_rate": 1e-5,
            "trainer.batch_size": 64,
            "trainer.weight_decay": 0.1,
            "trainer.epochs": 50,
            "method.first_share": 1 / 50,
            "method.upweight": 51,
        },
    ),
    # The e2cnn tutorial, and Weiler & Cesa's final models.
    (
        {"dataset": "rotmnist", "method.architecture": "c8"},
        {"dataset.variant": "12k", "trainer.learning_rate": 5e-5, "trainer.weight_decay": 1e-5, "trainer.epochs": 31},
    ),
    (
        {"dataset": "cifar10", "method": "fixed_augmentation"},
        {"trainer.epochs": 200, "method.distribution": "crop_flip"},
    ),
    (
        {"dataset": "rotmnist", "method.architecture": "c16"},
        {"dataset.variant": "12k", "trainer.learning_rate": 0.015, "trainer.epochs": 40, "trainer.batch_size": 64},
    ),
    (
        {"dataset": "rotmnist", "method.architecture": "d16"},
        {"dataset.variant": "12k", "trainer.learning_rate": 0.015, "trainer.epochs": 40, "trainer.batch_size": 64},
    ),
    # Tables and angles of our own size; the headers say so.
    ({"dataset": "tabular_nuisance"}, {"trainer.batch_size": 1024}),
    ({"dataset": "rotmnist", "dataset.train_size": 10000}, {"trainer.epochs": 5, "backbone": "mlp"}),
    ({"dataset": "chain_sem", "method": "erm"}, {"backbone": "linear", "backbone.bias": False}),
    ({"dataset": "chain_sem", "method": "icp"}, {"trainer.steps": 3000}),
]


def facts(config: RunConfig) -> Facts:
    """Return what a pattern can name."""
    names = {"method": config.spec.method, "dataset": config.spec.dataset, "backbone": config.spec.backbone}
    return names | config.spec.flat()


def configs() -> Iterator[tuple[str, Facts]]:
    """Yield every setting of the sweeps in their full size, and of the claims."""
    sweeps = {name: Sweep.read(name) for name in sweep_names() if name not in OURS}
    sweeps |= {name: sweep_of(claim) for source in sources().values() for name, claim in source.claims.items()}
    for name, sweep in sweeps.items():
        for config in sweep.runs():
            yield name, facts(config)


def meets(config: Facts, pattern: Facts) -> bool:
    return all(config.get(name, ...) == value for name, value in pattern.items())


def test_sweeps_and_claims_run_what_their_sources_say() -> None:
    every = list(configs())
    wrong = {
        f"{name}, {config['method']} on {config['dataset']}: {setting} is {config.get(setting)}, not {value}"
        for (name, config), (pattern, expected) in itertools.product(every, SETTINGS)
        if meets(config, pattern)
        for setting, value in expected.items()
        if config.get(setting, ...) != value
    }
    assert not wrong
    unused = [pattern for pattern, _ in SETTINGS if not any(meets(config, pattern) for _, config in every)]
    assert not unused, "patterns that no sweep and no claim has"
    unchecked = {name for name, config in every if not any(meets(config, pattern) for pattern, _ in SETTINGS)}
    assert not unchecked, "sweeps and claims of which nothing is stated here"


@pytest.mark.parametrize("method", ["irmv1", "vrex", "mm_rex", "mmd", "irm_games"])
def test_entries_of_one_variant_do_not_reach_another(method: str) -> None:
    """In the recipe of coloured MNIST: there is none of the IRM paper's in DomainBed's, and the reverse."""
    paper, domainbed = (
        facts(resolve(method, "colored_mnist", 0, {"dataset.variant": name})) for name in ("irm", "domainbed")
    )
    assert domainbed["trainer.steps"] == 5001
    assert (domainbed["trainer.batch_size"], domainbed["trainer.weight_decay"]) == (64, 0.0)
    assert paper["trainer.weight_decay"] > 0
    assert facts(resolve(method, "colored_mnist")) == paper, "the default variant"
