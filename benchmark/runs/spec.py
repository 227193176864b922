"""What a run is: its specification, its identity and the names of its settings."""

import hashlib
import json
import re
from operator import index
from typing import Any, Literal, SupportsIndex

from pydantic import BaseModel, ConfigDict, Field

from invbench.errors import UserError, brief
from invbench.pytree import flatten, sole

Protocol = Literal[
    "last", "best_validation", "worst_group", "group_average", "worst_class", "balanced", "leave_one_env_out", "oracle"
]
"""Choice of the settings: `last`, not by results; otherwise by this selection, among runs with other seeds."""
MAX_SEED = 2**32 - 1


class RunSpec(BaseModel):
    """A cell with all settings and one seed, as JSON data with nothing left to defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    method_settings: dict[str, dict[str, Any]]
    dataset: str
    dataset_settings: dict[str, Any]
    backbone: str
    """Name of the backbone; empty where the method makes the network."""
    backbone_settings: dict[str, Any]
    trainer: dict[str, Any]
    seed: int = Field(ge=0, le=MAX_SEED)
    protocol: Protocol = "last"

    @property
    def run_id(self) -> str:
        """Return 16 hexadecimal digits of the sha256 of the canonical JSON: equal runs have equal ids."""
        text = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """Describe the run in a few words."""
        return f"{self.method}/{self.dataset} seed {self.seed}"

    def flat(self) -> dict[str, Any]:
        """Return all settings by column, such as `method.threshold`; in a composition `method.and_mask.threshold`."""
        sections = {
            "method": sole(self.method_settings),
            "dataset": self.dataset_settings,
            "backbone": self.backbone_settings,
            "trainer": self.trainer,
        }
        return flatten(sections)


def _checked_seed(seed: SupportsIndex) -> int:
    """Return a seed, numpy's whole numbers too, as an int. Raises UserError for anything else."""
    number = index(seed) if isinstance(seed, SupportsIndex) and not isinstance(seed, bool) else -1
    if not 0 <= number <= MAX_SEED:
        raise UserError(f"seed {seed!r} must be a whole number from 0 to {MAX_SEED}")
    return number


Fuse = Literal["auto", "off"] | int
"""Choice of training runs together that differ in seed and numbers only: `auto` where it is faster, `off`, or a
number of runs."""


def parse_fuse(text: str) -> Fuse:
    """Parse `auto`, `off` or a number. Raises UserError for anything else."""
    if text == "auto" or text == "off":  # one by one, so that a type checker sees which
        return "auto" if text == "auto" else "off"
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise UserError(f"--fuse {brief(text)}: it is auto, off, or a number of runs from 1 to 999999999")
    return int(text)


LATE_STARTS = {
    "anneal_steps": ("weight", "weight_before"),
    "pretrain_steps": ("weight", None),
    "bottleneck_anneal_steps": ("bottleneck_weight", None),
    "burn_in": ("quantile", None),
    "warm_up": ("inner_steps", None),
    "first_step": ("candidates", None),
    "average_from": ("average_from", None),
}
"""Settings with the step from which another one counts, such as a penalty's weight: that, and the weight before it,
None for 0; a mean of the weights has no other one."""


def late_effect(start: str, prefix: str = "") -> str:
    """Return what begins with the step of a setting of `LATE_STARTS`: another setting, or the mean of the weights."""
    setting = LATE_STARTS[start][0]
    return "the mean of the weights" if setting == start else f"{prefix}{setting}"
