"""Seconds to read a folder of ten thousand runs: without an index, and with one.

Makes the folder from one real run, whose seed and settings are varied.

    python scripts/benchmark_results.py [--runs 10000]
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
import yaml

from invbench import load_results, table
from invbench.reporting.page import report
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.training.runner import run_one

SETTINGS = {
    "dataset.examples": 50,
    "dataset.validation_examples": 50,
    "dataset.test_examples": 50,
    "trainer.batch_size": 50,
    "trainer.steps": 4,
    "trainer.evaluate_every": 2,
}


def main(runs: Annotated[int, typer.Option(min=1)] = 10_000) -> None:
    """Make, read twice, tabulate."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        make(out, runs)
        cold = seconds(out)
        warm = seconds(out)
        began = time.perf_counter()
        rows = len(table(load_results(out)))
        tabulated = time.perf_counter() - began
        began = time.perf_counter()
        page = report([out])
        reported = time.perf_counter() - began
        (out / "index.parquet").unlink()
        print(f"{runs} runs: without index {cold:.2f} s, with index {warm:.2f} s ({cold / warm:.1f} times faster)")
        print(f"`table` of them, {rows} rows, reading included: {tabulated:.2f} s")
        print(f"`report`, a page of {len(page) / 2**20:.1f} MiB: {reported:.1f} s")


def make(out: Path, runs: int) -> None:
    """Make folders as runs leave them, five seeds of each setting."""
    first = run_one(resolve("vrex", "spirals", 0, SETTINGS), Options(out=out / "first"))
    source = RunFolder(out / "first" / first.run_id)
    for number in range(runs):
        spec = first.spec.model_copy(
            update={
                "seed": number % 5,
                "method_settings": {"vrex": first.spec.method_settings["vrex"] | {"weight": number // 5}},
            }
        )
        folder = RunFolder(out / f"group{number % 7}" / spec.run_id)
        folder.path.mkdir(parents=True)
        folder.spec.write_text(yaml.dump(spec.model_dump(), Dumper=yaml.CSafeDumper, sort_keys=False))
        folder.record.write_text(
            first.model_copy(update={"spec": spec, "run_id": spec.run_id}).model_dump_json(indent=1)
        )
        shutil.copyfile(source.curves, folder.curves)
        shutil.copyfile(source.log, folder.log)
    shutil.rmtree(out / "first")


def seconds(out: Path) -> float:
    """Time one call of `load_results`, in seconds."""
    began = time.perf_counter()
    load_results(out)
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
