"""The oracle: ERM on training data whose spurious part tells nothing, as far as a dataset can make such.

Linear problems permute their spurious inputs within each environment, coloured digits are shown in grey. What ERM
reaches there is what an invariant method can hope for; it is no method, and in a table it belongs apart.
"""

from typing import ClassVar

from invbench.core.method import Method
from invbench.core.registry import register_method


@register_method("oracle")
class Oracle(Method):
    """Empirical risk minimisation without the spurious cue. It has no settings."""

    display_name: ClassVar[str] = "Oracle"
    requires: ClassVar[tuple[str, ...]] = ("oracle",)
