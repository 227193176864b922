"""What the methods of the leaderboard change in empirical risk minimisation, and what they are told."""

from functools import cache

import pandas as pd

from invbench.core.hooks import EnvironmentContext, changed_by
from invbench.core.registry import METHODS

ORACLE = "oracle"
"""What a method requires that is told the answer."""
KNOWLEDGE = ("environments", "nuisance", ORACLE)
"""What some methods require of the data beyond inputs and labels."""


def knows(method: str) -> str:
    """Say what a registered method is told beyond inputs and labels, such as `environments`.

    `test inputs` is one whose prediction depends on other inputs of the test.
    """
    parts = method.split("+")
    needs = [need for name in parts for need in METHODS.traits(name)]
    knowledge = dict.fromkeys(need for need in needs if set(need.split(" or ")) & set(KNOWLEDGE))
    is_transductive = any(issubclass(METHODS.load(name), EnvironmentContext) for name in parts)
    return ", ".join([*knowledge, *(["test inputs"] if is_transductive else [])])


def knowledge_in_words(knowledge: str) -> str:
    """Write what `knows` returns for people: `oracle` is the name of a method and of a rule, too."""
    return knowledge.replace(ORACLE, "the answer")


def without_oracles(rows: pd.DataFrame) -> pd.DataFrame:
    """Leave out the rows of methods that are told the answer."""
    return rows[~rows["knows"].str.contains(ORACLE)]


@cache
def changes(method: str) -> str:
    """Say what a method changes, such as `the objective, the gradient`; `?` of one that is not registered."""
    if not is_registered(method):
        return "?"
    words = [word for name in method.split("+") for word in changed_by(METHODS.load(name))]
    return ", ".join(dict.fromkeys(words)) or "nothing"


def is_registered(method: str) -> bool:
    """Tell whether all parts of a method are registered; those of submissions need not be."""
    return all(name in METHODS.known() for name in method.split("+"))


def is_of_suite(method: str) -> bool:
    """Tell whether all parts of a method come with the suite."""
    return is_registered(method) and all(
        METHODS.load(name).__module__.startswith("invbench.") for name in method.split("+")
    )
