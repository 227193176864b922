"""A sweep of runs that have accidents, carried out by the command in processes of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from cells import SMALL

from invbench.results.load import load_results
from invbench.runs.folder import run_folders
from invbench.runs.lease import read_lease

FAULTY = """
import os, resource, signal, time
import psutil
import torch
from pathlib import Path
from typing import Literal
from invbench.core.method import Method
from invbench.core.registry import register_method
from invbench.core.settings import setting


@register_method("faulty")
class Faulty(Method):
    '''ERM with an accident in every step.'''

    fault: Literal["none", "raise", "hang", "memory", "slow", "kill", "kill_once"] = setting("none", "which")
    number: int = setting(0, "tells runs apart")

    def risk(self, risks, env, state):
        if self.fault == "raise":
            raise ValueError("no luck")
        if self.fault == "memory":  # as much as there is, and then more
            room = psutil.Process().memory_info().vms + 2**29
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
            torch.ones(2**30)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "slow":
            time.sleep(0.3 if Path(os.environ["FAULTY_DAWDLES"]).exists() else 0.05)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "kill_once":
            here = Path(os.environ["FAULTY_KILLED"])
            if not here.exists():
                here.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return risks.mean(), state
"""
CODE = "from invbench.cli import main; main()"


class FaultySweep:
    """A folder with a sweep file, the faulty method as an installed package, and the results."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.dawdles = folder / "dawdles"
        """While this file is there, slow runs take half a minute instead of some seconds."""
        packages = folder / "packages"
        info = packages / "faulty-1.0.dist-info"
        info.mkdir(parents=True)
        (packages / "faulty.py").write_text(FAULTY)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[invbench.methods]\nfaulty = faulty:Faulty\n")
        self.environment = os.environ | {
            "PYTHONPATH": str(packages), "FAULTY_KILLED": str(folder / "killed"), "FAULTY_DAWDLES": str(self.dawdles),
            "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip

    def file(self, faults: list[str], steps: int = 4, seeds: str = "0", name: str = "sweep.yaml") -> Path:
        """Write a sweep of one run for each fault and seed."""
        settings = SMALL["spirals"] | {"trainer.steps": steps}
        cells = [
            {"method": "faulty", "dataset": "spirals", "set": {"method.fault": fault, "method.number": number}}
            for number, fault in enumerate(faults)
        ]
        path = self.folder / name
        path.write_text(json.dumps({"seeds": seeds, "set": settings, "cells": cells}))
        return path

    def slow_file(self) -> Path:
        """Write a sweep of four runs that take some seconds each, to be disturbed."""
        return self.file(["slow"], steps=100, seeds="0-3")

    def start(self, file: Path, *more: str) -> subprocess.Popen[str]:
        """Start the command in the background, in a process group of its own, by default on two workers."""
        more = more if "--engine" in more else ("--workers", "2", "--memory-floor", "0", *more)
        arguments = ["sweep", str(file), "--out", str(self.out), *more]
        return subprocess.Popen(
            [sys.executable, "-c", CODE, *arguments],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, file: Path, *more: str) -> tuple[int, str]:
        """Run the command to its end and return its exit status and its output."""
        process = self.start(file, *more)
        said, _ = process.communicate(timeout=240)
        return process.returncode, said

    def kinds(self) -> dict[str, list[str]]:
        """Return the status, or the kind of failure, of the runs of each fault."""
        outcomes: dict[str, list[str]] = {}
        for row in load_results(self.out).to_dict("records"):
            said = row["kind"] if row["status"] == "failed" else row["status"]
            outcomes.setdefault(row["method.fault"], []).append(said)
        return outcomes

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each run, by its id."""
        records = [folder.read_record() for folder in run_folders(self.out)]
        return {record.run_id: record.metrics for record in records if record is not None}

    def wait_for_steps(self, process: subprocess.Popen[str], runs: int) -> None:
        """Wait until so many runs at once have made a step."""
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            seen = [read_lease(folder.lease_file) for folder in run_folders(self.out)]
            holders = [one.holder for one in seen if one is not None and one.holder is not None]
            if sum(holder.lives and holder.step > 0 for holder in holders) >= runs:
                return
            time.sleep(0.05)
        raise AssertionError(f"no {runs} runs got so far: {process.communicate()[0] if process.poll() else ''}")
