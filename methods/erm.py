"""Empirical risk minimisation: the baseline that every other method changes in one place."""

from typing import ClassVar

from invbench.core.method import Method
from invbench.core.registry import register_method


@register_method("erm")
class ERM(Method):
    """Minimise (1/E) Σ_e R_e, the mean over environments of the mean loss (Vapnik, 1991). It has no settings."""

    display_name: ClassVar[str] = "ERM"
    requires: ClassVar[tuple[str, ...]] = ()
