"""Contact sheets of every dataset."""

from pathlib import Path

import pytest
import torch
from cells import small_config
from matplotlib.image import imread

from invbench.cli import main
from invbench.core.registry import datasets_with_defaults
from invbench.reporting.contact_sheet import contact_sheet
from invbench.seeding import stream

DRAWN = ("colored_digits", "penguins", "qm9", "spirals")
"""Datasets of each kind, whose sheets are drawn by default."""


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(
    "dataset",
    [name if name in DRAWN else pytest.param(name, marks=pytest.mark.slow) for name in datasets_with_defaults()],
)
def test_every_dataset_can_be_drawn(dataset: str, tmp_path: Path) -> None:
    problem = small_config("erm", dataset).dataset.load(stream(0, "data"))
    state = torch.get_rng_state()
    contact_sheet(problem, dataset, tmp_path / "sheet.png")
    assert torch.equal(torch.get_rng_state(), state)
    image = imread(tmp_path / "sheet.png")
    assert image.shape[0] > 150
    assert image.shape[1] > 250
    assert image[..., :3].std() > 0.02, "something is drawn"


def test_from_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    verb = ["bench", "show", "digits", "--picture", "d.svg", "--set", "dataset.environments=rotation_bins"]
    monkeypatch.setattr("sys.argv", verb)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    text = (tmp_path / "d.svg").read_text()
    assert text.startswith("<?xml")
