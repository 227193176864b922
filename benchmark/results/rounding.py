"""Round numbers by their uncertainty: 0.52 ± 0.18, not 0.5239 ± 0.1810."""

import math

from invbench.results.statistics import ROUNDING

TWO_DIGITS = 3.55
"""Leading digits of an uncertainty below which it has two digits, as in 0.18, and above which it has one, as in 0.4.

The rule is that of the Particle Data Group (Review of Particle Physics, introduction, 5.3).
"""
PLAIN = 5
"""Power of ten from which on, and minus which, numbers are written with powers of ten."""


def rounded(value: float, half_width: float = math.nan, digits: int | None = None, sign: str = "") -> str:
    """Write a number and its uncertainty with the same decimals, as many as the uncertainty warrants.

    >>> rounded(0.5239, 0.1810), rounded(0.5239, 0.4810), rounded(83.12345, 0.0123)
    ('0.52 ± 0.18', '0.5 ± 0.5', '83.123 ± 0.012')
    >>> rounded(0.52391), rounded(0.5, 0.0), rounded(0.1, 0.02, sign="+"), rounded(3.2e-7, 1.1e-8)
    ('0.524', '0.500 ± 0.000', '+0.100 ± 0.020', '3.20e-07 ± 1.1e-08')

    Args:
        half_width: half an interval, or a standard error; NaN where there is none: three significant digits.
        digits: decimals in the place of this rule.
        sign: `+` for one before positive numbers too.
    """
    known = half_width > ROUNDING * abs(value)  # the interval of equal values is zero
    last = _last_digit(half_width) if known else _leading(value, 3) - 2
    if digits is None and not -PLAIN < max(last, _leading(value)) < PLAIN:
        return _in_powers(value, half_width, last, sign)
    decimals = max(0, -last) if digits is None else digits
    text = f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # never -0
    return text if math.isnan(half_width) else f"{text} ± {half_width:.{decimals}f}"


def _in_powers(value: float, half_width: float, last: int, sign: str) -> str:
    """Write a number and its uncertainty with powers of ten, the number down to the power `last`."""
    text = f"{value:{sign}.{max(0, _leading(value) - last)}e}"
    spread = f"{half_width:.{max(0, _leading(half_width) - last)}e}"
    return text if math.isnan(half_width) else f"{text} ± {spread}"


def _last_digit(half_width: float) -> int:
    """Return the power of ten of the last digit that an uncertainty has."""
    leading = _leading(half_width, 3)
    return leading - (half_width / 10.0**leading < TWO_DIGITS)


def _leading(value: float, digits: int = 1) -> int:
    """Return the power of ten of a number's first digit, once it is rounded to `digits` significant digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2]) if math.isfinite(value) else 0
