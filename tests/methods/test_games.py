"""IRM games: who moves when, and when a game is over."""

from pathlib import Path

import pytest
import torch
from cells import load, risks_of, small_config

from invbench.core.hooks import Update
from invbench.errors import UserError
from invbench.methods.irm_games import IRMGames
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import fuse_obstacle, resolve
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop
from invbench.training.runner import run_one


@pytest.mark.parametrize(
    ("variant", "moves"),
    [("fixed", ["players.0", "players.1", "players.0"]), ("variable", ["representation", "players.1", "players.0"])],
)
def test_players_of_a_game_move_in_turn(variant: str, moves: list[str], tmp_path: Path) -> None:
    """Each follows the risk of its own environment by an Adam of its own; the others stand still."""
    config = small_config(
        "irm_games",
        "colored_digits",
        method__variant=variant,
        method__dropout=0.0,
        trainer__dtype="float64",
        trainer__weight_decay=0.0,
    )
    problem = load(config, torch.float64)
    training = TrainingLoop(config, problem, build_model(config, problem).double(), RunFolder(tmp_path), "", 0)
    model = build_model(config, problem).double()
    names = dict(model.named_parameters())
    players = {prefix: [p for name, p in names.items() if name.startswith(prefix)] for prefix in set(moves)}
    rate = config.trainer.learning_rate
    adams = {
        name: torch.optim.Adam(of, rate * (0.1 if name == "representation" else 1)) for name, of in players.items()
    }
    for number, mover in enumerate(moves):
        batch = training.next_batch()
        risks = dict(zip(batch.env.tolist(), risks_of(model, problem, batch), strict=True))
        risk = sum(risks.values()) / len(risks) if mover == "representation" else risks[int(mover[-1])]
        model.zero_grad()
        risk.backward()
        adams[mover].step()
        training.step(batch)
        for name, ours in training.parameters.items():
            assert torch.allclose(ours, names[name], atol=1e-12), (number, name)


@pytest.mark.parametrize(("method", "environments"), [("irm_games", 1), ("irm_games+vrex", 2), ("irm_games+mixup", 2)])
def test_a_move_takes_the_examples_of_one_environment(method: str, environments: int, tmp_path: Path) -> None:
    """Unless a penalty compares environments, or they are mixed."""
    config = resolve(method, "colored_digits", 0, {"trainer.batch_size": 8})
    assert config.method.update(["players.0.0.weight", "players.1.0.weight"], 0, 0).environment == 0
    problem = load(config, torch.float32)
    training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
    training.step(training.next_batch())
    assert len(training.last_env) == environments
    assert training.last is not None
    assert {name.split(".")[1] for name in training.last.gradients} == {"0"}, "of the player that moves"


def test_a_game_stops_when_accuracy_is_low(tmp_path: Path) -> None:
    """After the warm start and not before; the record tells how many steps there were."""
    low = small_config("irm_games", "colored_digits", trainer__stop_below=1.1, trainer__stop_after=4, trainer__steps=12)
    record = run_one(low, Options(out=tmp_path))
    assert record.engine["steps"] == 4
    again = run_one(low, Options(out=tmp_path))
    assert again == record
    never = small_config(
        "irm_games", "colored_digits", trainer__stop_below=0.0, trainer__stop_after=4, trainer__steps=12
    )
    assert run_one(never, Options(out=tmp_path)).engine["steps"] == 12
    assert fuse_obstacle(small_config("erm", "spirals", trainer__stop_below=0.5)) == (
        "trainer.stop_below may end a run before its last step"
    )
    with pytest.raises(UserError, match="trainer.stop_below is an accuracy, and this dataset is a regression"):
        run_one(small_config("erm", "irm_regression", trainer__stop_below=0.5), Options(out=tmp_path))
    with pytest.raises(UserError, match="setting 'method.stop_below' is trainer.stop_below now"):
        small_config("irm_games", "colored_digits", method__stop_below=0.6)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (Update({"players.0.0.weight": 1.0}, 0, environment=-1), "gives the environment -1, which is no number from 0"),
        (Update({"players.0.0.weight": 1.0}, 0, environment=True), "gives the environment True, which is no number"),
        (Update({"players.0.0.weight": 1.0}, 0, environment=2), "gives the environment 2; there are 2"),
        (Update({}, 0), "moves no parameter"),
    ],
)
def test_an_update_that_cannot_be_is_named(
    update: Update, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("irm_games", "colored_digits")
    problem = load(config, torch.float32)
    training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
    monkeypatch.setattr(IRMGames, "update", lambda self, names, count, step: update)
    with pytest.raises(ValueError, match=f"update of method irm_games {message}"):
        training.step(training.next_batch())


def test_an_environment_that_is_not_in_the_step_is_not_replaced_by_another(tmp_path: Path) -> None:
    config = resolve("irm_games", "spirals", 0, {"trainer.batch_size": 4, "trainer.environments_per_step": 2})
    problem = load(config, torch.float32)
    training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
    batch = training.next_batch()
    assert 0 not in batch.env.tolist()
    training.step(batch)
    assert training.last is not None
    assert all(not gradient.any() for gradient in training.last.gradients.values())
