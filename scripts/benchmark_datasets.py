"""How long the datasets take to make, and what rotating images together saves over rotating them one by one.

Every dataset whose files are on this machine is made twice with its default settings; the second time is printed, after
what can be kept in the cache was kept. Then 28x28 images are turned in one call and in a loop, interleaved.

    python scripts/benchmark_datasets.py [--images 4000] [--rounds 5]
"""

import statistics
from typing import Annotated

import torch
import typer

from invbench.cli.listing import availability
from invbench.components.images import rotate
from invbench.core.registry import datasets_with_defaults
from invbench.runs.resolve import resolve
from invbench.seeding import stream
from invbench.system.device import timed

CPU = torch.device("cpu")


def main(images: Annotated[int, typer.Option(min=1)] = 4000, rounds: Annotated[int, typer.Option(min=1)] = 5) -> None:
    """Measure and print."""
    for name in datasets_with_defaults():
        if availability(name) == "not here":
            print(f"{name:20}  not here")
            continue
        dataset = resolve("erm", name).dataset
        dataset.load(stream(0, "data"))
        seconds = timed(lambda dataset=dataset: dataset.load(stream(0, "data")), CPU)
        print(f"{name:20}  {seconds:6.2f} s")
    x, angles = torch.rand(images, 1, 28, 28), torch.rand(images)

    def one_by_one() -> None:
        for i in range(images):
            rotate(x[i : i + 1], angles[i : i + 1])

    rotate(x, angles)
    pairs = [(timed(lambda: rotate(x, angles), CPU), timed(one_by_one, CPU)) for _ in range(rounds)]
    together, apart = (1e6 * statistics.median(column) / images for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"rotation: {together:.1f} µs an image together, {apart:.1f} µs one by one, ratio {ratio:.1f}")


if __name__ == "__main__":
    typer.run(main)
