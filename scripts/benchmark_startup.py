"""How long `bench ls` takes, against the least that any typer command can take: `import typer`.

Whole processes, interleaved; the median of each and of the rounds' ratios.

    python scripts/benchmark_startup.py [--rounds 15]
"""

import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer

LISTING = "import sys; sys.argv = ['bench', 'ls']; from invbench.cli import main; main()"
LEAST = "import typer"


def main(rounds: Annotated[int, typer.Option(min=1)] = 15) -> None:
    """Measure and print."""
    _seconds(LISTING), _seconds(LEAST)  # warm the caches
    pairs = [(_seconds(LISTING), _seconds(LEAST)) for _ in range(rounds)]
    listing, least = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"bench ls {listing:.3f} s, import typer {least:.3f} s, ratio {ratio:.1f}")


def _seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
