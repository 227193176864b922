"""Two bodies of equal mass that circle about their centre: how far apart are they some time later?

The two-body problem of Hamiltonian neural networks (Greydanus, Dzamba, Yosinski 2019, arXiv 1906.01563, appendix), from
which LieGAN finds the rotations of the plane (Yang, Walters, Dehmamy, Yu 2023, arXiv 2302.00236). With masses and the
constant of gravity 1 and the centre of mass at rest in the origin, the state is

    x = (q_1, p_1, q_2, p_2) in R^8,   q_2 = -q_1,   p_2 = -p_1,   q_1' = p_1,   p_1' = -(q_1 - q_2) / |q_1 - q_2|³

An orbit starts with |q_1| = R ~ U(smallest_radius, largest_radius) in a random direction and p_1 across it, counter-
clockwise, of length (1 + orbit_noise N(0, 1)) / (2 √R): 1 / (2 √R) makes a circle. The input is the state at a time
~ U(0, duration), the target y = |q_1 - q_2| at `horizon` later. Each example has an orbit of its own. N is cut off
at ±3, so that all orbits are ellipses, which Kepler's equation follows exactly.

`algebra` is the generator that turns all four vectors of the plane alike. On these data q_1 + q_2 and p_1 + p_2 are 0:
what a generator does to them changes no example, so that others serve as well as this one, such as that which turns
q_1 - q_2 and p_1 - p_2 but neither sum, and is 45 degrees from it.

Deviations from both:
- The target is a number that rotations leave alone; theirs is the derivative of the state, or the state later, which
  turns with the input.
- Directions are uniform on the circle and R on its interval; those of Greydanus et al. start in the first quadrant,
  with both coordinates of q_1 uniform.
- orbit_noise is 0.1; theirs is 0.05, with which distances hardly change, and is not cut off.
- Theirs are integrated by a Runge-Kutta method.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator

from invbench.components.algebra import on_every_block
from invbench.core.data import Dataset, Problem, Split, Symmetry, drawn_splits, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Regression

PLANE_ROTATION = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
"""Generator of rotations of the plane, counter-clockwise."""
GRAVITY = 2.0
"""Acceleration of the first body against the second at distance 1: the sum of both masses."""
LARGEST_NOISE = 3.0
"""Standard deviations at which the noise of a speed is cut off, so that no orbit is open."""
NEWTON_STEPS = 12

State = NDArray[np.float64]
"""Of the first body against the second: distance vector, then velocity (N, 4)."""


@register_dataset("two_body")
class TwoBody(Dataset):
    """Two bodies in the plane under gravity: their distance later on."""

    display_name: ClassVar[str] = "Two bodies"
    provides: ClassVar[tuple[str, ...]] = ("vector", "regression")
    citation: ClassVar[str] = "Greydanus et al., Hamiltonian neural networks, arXiv 1906.01563"
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.train_examples": 200,
        "dataset.validation_examples": 50,
        "dataset.test_examples": 50,
        "trainer.batch_size": 50,
    }

    smallest_radius: float = setting(0.5, "least distance of a body from the centre at the start", ge=0.1, le=100)
    largest_radius: float = setting(1.5, "most distance of a body from the centre at the start", ge=0.1, le=100)
    orbit_noise: float = setting(0.1, "relative standard deviation of speeds from that of a circle", ge=0, le=0.1)
    duration: float = setting(20.0, "inputs are states at a time between 0 and this", ge=0, le=100)
    horizon: float = setting(4.0, "time from the input to the target", ge=0, le=100)
    train_examples: int = setting(5_000, "training examples", ge=2)
    validation_examples: int = setting(1_000, "validation examples; 0 makes no such split", ge=0)
    test_examples: int = setting(2_000, "test examples", ge=2)

    @model_validator(mode="after")
    def _radii_are_in_order(self) -> Self:
        if self.smallest_radius > self.largest_radius:
            raise ValueError("largest_radius must not be less than smallest_radius")
        return self

    def load(self, seed: np.random.SeedSequence) -> Problem:
        sizes = {"train": self.train_examples, "validation": self.validation_examples, "test": self.test_examples}
        splits = drawn_splits(self._draw, sizes, seed)
        std, mean = torch.std_mean(splits["train"].y.double())
        task = Regression("lengths", mean.item(), std.item() or 1.0, primary="mean_squared_error")
        symmetry = Symmetry(algebra=on_every_block(PLANE_ROTATION[None], 4).float())
        return Problem(splits, task, "vector", "synthetic", symmetry=symmetry)

    def _draw(self, count: int, rng: np.random.Generator) -> Split:
        radius = rng.uniform(self.smallest_radius, self.largest_radius, count)
        angle = rng.uniform(0, 2 * np.pi, count)
        noise = np.clip(rng.normal(size=count), -LARGEST_NOISE, LARGEST_NOISE)
        speed = (1 + self.orbit_noise * noise) / np.sqrt(radius)
        outwards, along = _direction(angle), _direction(angle + np.pi / 2)
        start = np.hstack([2 * radius[:, None] * outwards, speed[:, None] * along])
        first = later(start, rng.uniform(0, self.duration, count)) / 2
        x = floats(np.hstack([first, -first]))
        return Split(x, floats(distance_later(x.double().numpy(), self.horizon)))


def _direction(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def distance_later(x: NDArray[np.float64], horizon: float) -> NDArray[np.float64]:
    """Compute the target (N,) of inputs (N, 8)."""
    distance: NDArray[np.float64] = np.linalg.norm(later(x[:, :4] - x[:, 4:], horizon)[:, :2], axis=1)
    return distance


def later(state: State, time: NDArray[np.float64] | float) -> State:
    """Follow each orbit, an ellipse, for its time (N,), or all for one: Kepler's equation, Lagrange's f and g."""
    place, velocity = np.split(state, 2, axis=1)
    distance = np.linalg.norm(place, axis=1)
    half_axis = 1 / (2 / distance - (velocity**2).sum(1) / GRAVITY)
    rate = np.sqrt(GRAVITY / half_axis**3)
    cosine, sine = 1 - distance / half_axis, (place * velocity).sum(1) / np.sqrt(GRAVITY * half_axis)
    start = np.arctan2(sine, cosine)  # the eccentric anomaly, of which these are e times the cosine and the sine
    turn = _eccentric_anomaly(start - sine + rate * time, np.hypot(cosine, sine)) - start
    end_distance = half_axis * (1 - cosine * np.cos(turn) + sine * np.sin(turn))
    versine = 1 - np.cos(turn)
    f = 1 - half_axis / distance * versine
    g = (distance / half_axis * np.sin(turn) + sine * versine) / rate
    change_of_f = -np.sqrt(GRAVITY * half_axis) / (distance * end_distance) * np.sin(turn)
    change_of_g = 1 - half_axis / end_distance * versine
    pairs = ((f, g), (change_of_f, change_of_g))
    return np.hstack([first[:, None] * place + second[:, None] * velocity for first, second in pairs])


def _eccentric_anomaly(mean: NDArray[np.float64], eccentricity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve E - e sin E = M for E (N,), up to whole turns, by Newton's method from Danby's start."""
    mean = np.mod(mean, 2 * np.pi)
    anomaly: NDArray[np.float64] = mean + 0.85 * eccentricity * np.sign(np.sin(mean))
    for _ in range(NEWTON_STEPS):
        error = anomaly - eccentricity * np.sin(anomaly) - mean
        anomaly = anomaly - error / (1 - eccentricity * np.cos(anomaly))
    return anomaly
