"""CSV that a spreadsheet shows and does not run."""

import re
from typing import Any

import pandas as pd

from invbench.terminal import visible

FORMULA = re.compile(r"[\t\r\n=+\-@＝＋－＠]")
"""How a text begins that spreadsheets take for a formula, or may once they have dropped the white space."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def csv(table: pd.DataFrame) -> str:
    """Format the table as CSV, without its index.

    Numbers are written with all digits and stay numbers, negative ones too. A text, also a column's name, that begins
    like a formula gets an apostrophe in front, with which a spreadsheet shows it as text; control characters become
    escapes such as `\\n`.
    """
    return table.map(_cell).rename(columns=_cell).to_csv(index=False)


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if FORMULA.match(value) and not NUMBER.fullmatch(value) else visible(value)
