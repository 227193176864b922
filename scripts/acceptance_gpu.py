"""Does a GPU do what the CPU does, and how fast? All that can be learned of a machine in a few minutes.

    check      same step      every method: a step in double and in single precision, on the CPU and on the device
               symmetry       errors of an equivariant network under quarter turns and reflections, with TF32 off and on
               resume         a run that is stopped half-way and taken up, against an undisturbed one
               together       eight runs trained together, against the same runs alone
               captured       sixteen steps of eight runs as one CUDA graph, against the same steps one by one
               waits          the lines at which a step makes the host wait for the GPU
               out of memory  a run that cannot fit fails as `oom`, and the next one is done
               smoke          the sweep `smoke`, four runs at a time
    measure    steps          milliseconds, kernel launches and memory of a step, alone and together; evaluation
               program        of runs trained together: the mapped step, its recorded program, that compiled, and
                              sixteen steps of it as one CUDA graph
               rotmnist       an epoch of Augerino in float32 and with bfloat16; needs the files in INVBENCH_DATA
               jobs           runs per hour with 1, 4 and 8 at a time
               scripts        the ratios of docs/performance.md, by their own scripts, with small sizes
               fusing         the same for whole runs trained together

Every row goes to OUT/rows.jsonl as soon as it is there, one JSON object a line: what it compares, its numbers, seconds,
and `ok` (null: left out, with the reason). A row that fails is kept with its error, and the others go on. The same
command again makes the rows that are missing and those that failed; a fresh folder begins anew. The exit status is 1
where a row is not ok, or had no time.

    python scripts/acceptance_gpu.py all --device cuda --out accepted [--seconds 500] [--only waits --only "steps erm"]
    python scripts/acceptance_gpu.py all --device cpu --out tried --small       the dry run
"""

import importlib
import io
import json
import math
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler prints when it begins and ends
import pandas as pd
import torch
import typer
from torch.profiler import ProfilerActivity, profile

import invbench
from invbench.components.eval_mode import eval_mode
from invbench.core.registry import METHODS
from invbench.datafiles.release import release
from invbench.errors import CannotFuse, RunFailed, UserError
from invbench.evaluation.invariance import measure
from invbench.evaluation.metrics import outputs_of
from invbench.runs.commands import assignments_of
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig, resolve
from invbench.system.device import choose_device, forget_peak_memory, peak_memory, timed
from invbench.system.provenance import describe
from invbench.testing.cells import small_config, without_coupling
from invbench.training.attempt import build_training
from invbench.training.build import load_problem
from invbench.training.fused import program
from invbench.training.fused.captured import STEPS, CapturedSteps
from invbench.training.fused.loop import FusedTraining
from invbench.training.loop import TrainingLoop
from invbench.training.progress import Report

CPU = torch.device("cpu")
KINDS = {"vector": ("spirals", "irm_regression", "mi_toy"), "image": ("digits", "colored_digits")}
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
"""Largest difference of a parameter after a step, relative to the largest parameter."""
ROUNDING = 10
"""Multiple of what single precision itself changes on the CPU that is allowed in the place of a smaller tolerance."""
SYMMETRY = {"tf32 off": 1e-4, "tf32 on": 1e-2}
"""Largest error, relative to the largest output."""
TOGETHER = {"float64": 1e-9, "float32": 1e-5}
"""Largest difference of a parameter between runs trained together and alone, relative to the largest parameter."""
WARM_UP, COUNTED, MOST = 10, 8, 100
"""Steps ahead of those in which waits are counted, these, and those after which no more of them are looked for."""
CELLS = {"erm": "spirals", "irmv1": "spirals", "and_mask": "spirals", "adversary": "mi_toy"}
"""Methods whose runs are trained together, and their datasets."""
SIZES = {"spirals": {"backbone.width": 64}}
"""Sizes in which steps are measured, where they are not the recipe's: those of the row spirals_64."""
DROPOUT = {"backbone.name": "mlp", "backbone.width": 32, "backbone.dropout": 0.5}
RESUMED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "erm, dropout": ("erm", "spirals", DROPOUT),
    "fixed_augmentation, dropout": ("fixed_augmentation", "digits", DROPOUT),
    "augerino": ("augerino", "digits", {}),
}
SCRIPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "objectives": ("benchmark_objectives", {"rounds": 3}),
    "gradients spirals": ("benchmark_gradients", {"case": "spirals", "rounds": 3}),
    "gradients photographs": ("benchmark_gradients", {"case": "photographs", "rounds": 3}),
    "augerino": ("benchmark_augerino", {"rounds": 3}),
    "colored_mnist": ("benchmark_colored_mnist", {"rounds": 1}),
}
FUSED = {"spirals_8": 300, "spirals_64": 300, "irm_regression": 2000}
"""Cases of benchmark_fusing.py, with the number of steps."""
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
NO_TIME = "the time was over"
ROW = {"part", "cell", "device", "small", "ok", "seconds"}
"""Names that every row has."""
RESTARTED = "INVBENCH_ACCEPTANCE_RESTARTED"
"""Environment variable of a command that took its own place: rows that failed are not tried again."""
Numbers = dict[str, Any]


class What(StrEnum):
    """Parts of the acceptance that the command can carry out."""

    check = "check"
    measure = "measure"
    all = "all"


class Skipped(Exception):
    """Reason why a row cannot be had here."""


@dataclass(frozen=True)
class Setup:
    """Where and how large the rows are.

    Args:
        device: that is to be accepted.
        small: sizes of a dry run.
        scratch: folder for the files of runs, thrown away at the end.
    """

    device: torch.device
    small: bool
    scratch: Path

    def folder(self) -> Path:
        """Make a new folder in the scratch folder, and return it."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def require_gpu(self, why: str) -> None:
        """Raise Skipped, with the reason, where the device is a CPU."""
        if self.device.type != "cuda":
            raise Skipped(f"on a CPU {why}")


Act = Callable[[Setup, str], Numbers]
"""Function that returns the numbers of a cell's row, with `ok` where something can be wrong."""
Part = tuple[Act, Callable[[Setup], Iterable[str]]]
"""Function for the rows of a part, and their cells."""


def main(
    what: Annotated[What, typer.Argument()] = What.all,
    device: Annotated[str, typer.Option(help="cuda, cuda:i or cpu")] = "cuda",
    out: Annotated[Path, typer.Option(help="Folder that gets rows.jsonl.")] = Path("accepted"),
    small: Annotated[bool, typer.Option("--small", help="Small sizes, for a dry run.")] = False,
    seconds: Annotated[float, typer.Option(min=0, help="No row begins after this time.")] = math.inf,
    only: Annotated[list[str] | None, typer.Option(help="First words of rows, such as 'waits erm'.")] = None,
) -> None:
    """Carry out the rows that are not there yet, and print them."""
    deadline = time.monotonic() + seconds
    try:
        torch_device = choose_device(device)
        results = Results(out / "rows.jsonl", {"device": torch_device.type, "small": small})
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    parts = (CHECKS if what != What.measure else {}) | (MEASUREMENTS if what != What.check else {})
    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup(torch_device, small, Path(scratch))
        rows = [(part, cell) for part, (_, cells) in parts.items() for cell in cells(setup)]
        wanted = tuple(f"{name}{end}" for name in only for end in " ,+")  # a name, or its first words
        rows = [row for row in rows if not only or f"{' '.join(row)} ".startswith(wanted)]
        if not rows:
            sys.exit(f"error: no row begins with {' or '.join(only or ())}; the parts are {', '.join(parts)}")
        results.add("machine", torch_device.type, lambda: {"torch": torch.__version__, **describe(torch_device)})
        for number, (part, cell) in enumerate(rows, 1):
            if (part, cell) in results.done:
                continue
            print(f"{number:>3}/{len(rows)} ", end="", flush=True)
            act = parts[part][0]
            compared = (act.__doc__ or "").partition("\n")[0]
            results.add(part, cell, partial(act if time.monotonic() < deadline else out_of_time, setup, cell), compared)
            if not usable(torch_device):
                restart(deadline - time.monotonic())
    sys.exit(results.summary())


def out_of_time(setup: Setup, cell: str) -> Numbers:
    """Take the place of a row for which no time is left."""
    raise Skipped(NO_TIME)


def usable(device: torch.device) -> bool:
    """Tell whether this process can still use the device: after an error inside of a kernel it cannot."""
    try:
        torch.ones(1, device=device).item()
    except RuntimeError:
        return False
    return True


def restart(seconds: float) -> None:
    """Start this command anew in the place of this process."""
    left = [] if math.isinf(seconds) else ["--seconds", str(max(0.0, seconds))]
    os.environ[RESTARTED] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv, *left])  # noqa: S606


class Results:
    """Rows in a file, those of an earlier call with the same settings included.

    Args:
        settings: of the call, which every row holds.
    """

    def __init__(self, path: Path, settings: Numbers) -> None:
        self.path, self.settings = path, settings
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = read_rows(path)
        if any(row[name] != value for row in self.rows for name, value in settings.items()):
            sys.exit(f"error: the rows of {path} are of another device or size; give another --out")
        path.write_text("".join(f"{json.dumps(row)}\n" for row in self.rows), "utf-8")

    @property
    def done(self) -> set[tuple[str, str]]:
        """Names of the rows that need not be repeated."""
        last = {(row["part"], row["cell"]): row for row in self.rows}
        skipped = (NO_TIME,) if RESTARTED in os.environ else (NO_TIME, False)
        return {name for name, row in last.items() if row.get("reason") not in skipped and row["ok"] not in skipped}

    def add(self, part: str, cell: str, act: Callable[[], Numbers], compared: str = "") -> None:
        """Carry out a row, write it and print it."""
        began = time.monotonic()
        try:
            numbers = {"compared": compared, "ok": True} | act()
        except (Skipped, CannotFuse) as reason:
            numbers = {"compared": compared, "ok": None, "reason": str(reason)}
        except Exception as error:  # it is what the row has to say
            at = line_of(traceback.extract_tb(error.__traceback__))
            numbers = {"compared": compared, "ok": False, "error": one_line(error), "at": at}
        seconds = round(time.monotonic() - began, 2)
        row = {"part": part, "cell": cell, **self.settings, **numbers, "seconds": seconds}
        self.rows.append(row)
        if row.get("reason") != NO_TIME:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, default=str) + "\n")
            except OSError as error:
                sys.exit(f"error: {self.path} cannot be written: {error.strerror}; the same command goes on from here")
        print(f"{mark(row):<5} {part:<13} {cell:<27} {row['seconds']:6.1f} s  {brief(row)}", flush=True)

    def summary(self) -> int:
        """Print how many rows of each part are ok, and those that are not. Returns the exit status."""
        last = {(row["part"], row["cell"]): row for row in self.rows}.values()
        print(f"\n{'part':<13} {'ok':>5} {'wrong':>6} {'left out':>9}")
        for part in dict.fromkeys(row["part"] for row in last):
            marks = Counter(mark(row) for row in last if row["part"] == part)
            print(f"{part:<13} {marks['ok']:>5} {marks['WRONG']:>6} {marks['-']:>9}")
        wrong = [row for row in last if row["ok"] is False]
        for row in wrong:
            print(f"WRONG {row['part']} {row['cell']}: {brief(row)}")
        if late := sum(row.get("reason") == NO_TIME for row in last):
            print(f"{late} rows had no time: the same command makes them")
        return int(bool(wrong or late))


def read_rows(path: Path) -> list[Numbers]:
    """Read the rows of earlier calls, without the last one where a kill has cut it."""
    rows = []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not row.keys() >= ROW:
                raise ValueError
        except ValueError:
            if number < len(lines):
                sys.exit(f"error: line {number} of {path} is not a row of this script; give another --out")
        else:
            rows.append(row)
    return rows


def mark(row: Numbers) -> str:
    """Return the word that says whether a row is ok, wrong or left out."""
    return {True: "ok", False: "WRONG", None: "-"}[row["ok"]]


def brief(row: Numbers) -> str:
    """Return the numbers of a row, or what went wrong, as a line."""
    lines = row.get("lines")
    if text := row.get("error") or row.get("reason") or (lines[-1] if isinstance(lines, list) else lines):
        return str(text)[:120]
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    return "  ".join(f"{name} {value:.3g}" for name, value in numbers.items() if name not in ("ok", "small", "seconds"))


def one_line(error: BaseException) -> str:
    """Return the kind of an error, and the first and the last line of its text."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' ... '.join(dict.fromkeys((lines[0], lines[-1])))}"


def line_of(frames: Sequence[traceback.FrameSummary]) -> str:
    """Return the innermost line of this project among the frames of a stack."""
    inner = [frame for frame in frames if "site-packages" not in frame.filename and "/lib/python" not in frame.filename]
    return "/".join(Path(inner[-1].filename).parts[-3:]) + f":{inner[-1].lineno}" if inner else "?"


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Return the cell with other settings, by dotted name."""
    spec = config.spec
    return resolve(spec.method, spec.dataset, spec.seed, assignments_of(spec) | dict(settings))


def cell_of(method: str, datasets: Sequence[str], settings: Mapping[str, Any] | None = None) -> RunConfig:
    """Return a small cell of the method on the first of the datasets that it can be run on."""
    for dataset in datasets:
        with suppress(UserError):
            return small_config(method, dataset, settings=settings)
    raise Skipped(f"it runs on none of {', '.join(datasets)}")


def training_of(config: RunConfig, device: torch.device, folder: Path | None = None) -> TrainingLoop:
    """Build the training of a cell. Raises Skipped where there is nothing to train."""
    options = Options(checkpoint_seconds=math.inf)
    training = build_training(config, load_problem(config), RunFolder(folder or Path()), device, "", options)
    if not training.total:
        raise Skipped("there is nothing to train")
    training.model.train()
    return training


def make_steps(training: TrainingLoop, count: int) -> None:
    """Make so many steps of a training, each from the batch that is next."""
    for _ in range(count):
        training.step(training.next_batch())


def difference(one: TrainingLoop, other: TrainingLoop) -> float:
    """Return the largest difference of two runs' parameters, relative to the largest of the second."""
    pairs = [(value, other.parameters[name]) for name, value in one.parameters.items()]
    on_host = [[value.detach().to(CPU, torch.float64) for value in pair] for pair in pairs]
    largest = torch.stack([b.abs().max() for _, b in on_host]).max()
    return float(torch.stack([(a - b).abs().max() for a, b in on_host]).max() / largest)


def compare_step(setup: Setup, method: str) -> Numbers:
    """Compare the parameters after a step from the same weights and batch with the CPU's.

    Where the step draws random numbers, which devices do differently, they only have to be finite.
    """

    def stepped(dtype: str, device: torch.device, noise: int = 0) -> TrainingLoop:
        training = training_of(changed(config, {"trainer.dtype": dtype}), device)
        torch.manual_seed(noise)
        make_steps(training, 1)
        return training

    config = without_coupling(cell_of(method, [name for names in KINDS.values() for name in names]))
    references = {dtype: stepped(dtype, CPU) for dtype in TOLERANCES}
    numbers = {dtype: difference(stepped(dtype, setup.device), reference) for dtype, reference in references.items()}
    rounding = difference(references["float32"], references["float64"])
    draws = difference(stepped("float64", CPU, noise=1), references["float64"]) > TOLERANCES["float64"]
    allowed = TOLERANCES | {"float32": max(TOLERANCES["float32"], ROUNDING * rounding)}
    ok = all(math.isfinite(value) if draws else value <= allowed[dtype] for dtype, value in numbers.items())
    return {"ok": ok, "dataset": config.spec.dataset, "only_finite": draws, "rounding": rounding, **numbers}


def symmetry_error(setup: Setup, cell: str) -> Numbers:
    """Measure the largest change of any output under quarter turns and reflections, relative to the largest output."""
    settings = {"method.reflections": True, "trainer.tf32": cell == "tf32 on", "trainer.steps": 8}
    training = training_of(small_config("steerable", "digits", settings=settings), setup.device)
    make_steps(training, 4)
    with eval_mode(training.model), torch.no_grad():
        largest = outputs_of(training.model, training.problem.splits["test"].x).prediction.abs().max().item()
    measured = measure(training.model, training.problem, 0, training.done)
    errors = {name: measured[f"{name}_error"] / largest for name in ("quarter_turns", "reflection")}
    return {"ok": max(errors.values()) <= SYMMETRY[cell], "allowed": SYMMETRY[cell], **errors}


def compare_resumed(setup: Setup, cell: str) -> Numbers:
    """Compare a resumed run with an undisturbed one, to the bit unless two undisturbed ones differ.

    Then some kernel adds in no fixed order, and the resumed run may differ by ten times as much.
    """
    method, dataset, settings = RESUMED[cell]
    config = small_config(method, dataset, settings={"trainer.steps": 20, **settings})
    undisturbed, again = (trained(config, setup.device, setup.folder(), 20) for _ in range(2))
    folder = setup.folder()
    trained(config, setup.device, folder, 10)
    resumed = difference(trained(config, setup.device, folder, 20), undisturbed)
    repeated = difference(again, undisturbed)
    return {"ok": resumed <= 10 * repeated, "resumed": resumed, "repeated": repeated}


def trained(config: RunConfig, device: torch.device, folder: Path, steps: int) -> TrainingLoop:
    """Train from the folder's checkpoint, or afresh, to this step, and keep a checkpoint."""
    training = training_of(config, device, folder)
    with training.noise(), Report("", steps, folder / "log.txt", quiet=True) as report:
        training.begin(report)
        make_steps(training, steps - training.done)
        training.save()
    return training


def compare_together(setup: Setup, method: str) -> Numbers:
    """Compare the parameters of eight runs trained together for 20 steps with the same runs alone."""

    def largest(dtype: str) -> float:
        settings = {"trainer.steps": 20, "trainer.dtype": dtype}
        configs = [small_config(method, CELLS[method], seed, settings) for seed in range(8)]
        alone = [training_of(config, setup.device) for config in configs]
        fused = FusedTraining([training_of(config, setup.device) for config in configs])
        for training in alone:
            make_steps(training, 20)
        for _ in range(20):
            fused.step()
        fused.unstack_runs()
        return max(difference(one, other) for one, other in zip(fused.trainings, alone, strict=True))

    numbers = {dtype: largest(dtype) for dtype in TOGETHER}
    return {"ok": all(value <= TOGETHER[dtype] for dtype, value in numbers.items()), **numbers}


def count_waits(setup: Setup, cell: str) -> Numbers:
    """Count the host's waits in steps by line, apart in those at which an epoch of the model or a critic begins."""
    training, step, loaders = steps_to_watch(setup, *cell.split(", "))
    inside, at_epochs, counted = Counter[str](), Counter[str](), 0
    with training.noise():
        for _ in range(WARM_UP + training.critics.all_active_from):
            step()
        for _ in range(MOST):
            epochs = [loader.order.number for loader in loaders]
            with waits_of_host(setup.device) as lines:
                step()
            within = training.sampler.whole or epochs == [loader.order.number for loader in loaders]
            (inside if within else at_epochs).update(lines)
            counted += within
            if counted == COUNTED:
                break
    setup.require_gpu("there is no wait")
    numbers = {"steps": counted, "waits": inside.total(), "lines": inside, "lines_at_epochs": at_epochs}
    return {"ok": not inside if counted else None, "dataset": training.config.spec.dataset, **numbers}


def steps_to_watch(setup: Setup, method: str, kind: str) -> tuple[TrainingLoop, Callable[[], object], list[Any]]:
    """Build a run on data of this kind, or two together. Returns the first, a function for a step, and the loaders."""
    settings = {"trainer.steps": 2 * MOST}
    if kind != "together":
        training = training_of(cell_of(method, KINDS[kind], settings), setup.device)
        return training, partial(make_steps, training, 1), [training.loader, *training.critics.loaders.values()]
    configs = [small_config(method, CELLS[method], seed, settings) for seed in range(2)]
    fused = FusedTraining([training_of(config, setup.device) for config in configs])
    return fused.first, fused.step, [fused.loader, *fused.critic_loaders.values()]


@contextmanager
def waits_of_host(device: torch.device) -> Iterator[Counter[str]]:
    """Count the host's waits for the GPU within a block by line; torch's mode `error` would stop at the first."""
    lines = Counter[str]()

    def count(message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):  # not the one that says what the mode does not see
            lines[line_of(traceback.extract_stack()[:-1])] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count  # until the end of the block
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def run_out_of_memory(setup: Setup, method: str) -> Numbers:
    """Carry out a run of which one layer's outputs do not fit, then a small one in the same process."""
    setup.require_gpu("it would take the machine's memory")
    rows, total = 2**18, torch.cuda.get_device_properties(setup.device).total_memory
    sizes = {"dataset.environments": 4, "dataset.examples": rows // 4, "trainer.batch_size": rows // 8}
    network = {"backbone.depth": 1, "backbone.width": total // (2 * rows) + 1}
    settings = {"trainer.epochs": None, "trainer.steps": 2, **sizes, **network}
    device, out, kind = str(setup.device), setup.folder(), "none"
    try:
        invbench.run(method, "spirals", settings=settings, device=device, out=out)
    except RunFailed as failure:
        kind = failure.kind
    statuses = invbench.load_results(out)["status"].tolist()
    following = invbench.run(method, "spirals", settings={"trainer.epochs": 1}, device=device, out=out)
    kept = torch.cuda.memory_allocated(setup.device)
    ok = kind == "oom" and statuses == ["failed"] and following.status == "done" and kept < 2**30
    return {"ok": ok, "kind": kind, "statuses": statuses, "next": following.status, "allocated_bytes": kept}


def smoke_sweep(setup: Setup, cell: str) -> Numbers:
    """Check that all runs of the sweep are done, and on which device."""
    runs, seconds = sweep_of(setup, sweep_file(setup.folder(), 1, 3) if setup.small else "smoke", 4)
    records = [RunFolder(Path(path)).load_record() for path in runs["path"]]
    devices = Counter(record.machine.get("gpu", record.machine.get("device")) for record in records if record)
    failed = runs[runs["status"] != "done"]
    wrong = (failed["method"] + "/" + failed["dataset"] + ": " + failed["message"].fillna("no record")).tolist()
    ok = not wrong and list(devices) == [describe(setup.device).get("gpu", "cpu")]
    return {"ok": ok, "runs": len(runs), "devices": devices, "sweep_seconds": seconds, "failed": wrong[:10]}


def sweep_file(folder: Path, seeds: int, steps: int) -> Path:
    """Write a sweep of ERM and AND-mask on small spirals."""
    sizes = "dataset.environments: 4, dataset.examples: 200, trainer.batch_size: 50"
    settings = f"{{trainer.epochs: null, trainer.steps: {steps}, {sizes}}}"
    path = folder / "sweep.yaml"
    path.write_text(
        f"{{seeds: 0-{seeds - 1}, set: {settings}, cells: [{{method: [erm, and_mask], dataset: spirals}}]}}"
    )
    return path


def sweep_of(setup: Setup, name: str | Path, jobs: int) -> tuple[pd.DataFrame, float]:
    """Carry out a sweep with so many runs at a time, on a CPU two. Returns its runs, and the seconds that it took."""
    gpu = {"device": "cuda", "gpus": str(setup.device.index), "jobs_per_gpu": jobs}
    resources = gpu if setup.device.type == "cuda" else {"device": "cpu", "workers": 2}
    began = time.monotonic()
    runs = invbench.sweep(name, out=setup.folder(), progress=False, **resources)
    return runs, time.monotonic() - began


def wait_cells(setup: Setup) -> list[str]:
    """List the methods, on vectors, on images, and with runs together."""
    alone = [f"{method}, {kind}" for method in METHODS.entries() for kind in KINDS]
    return alone + [f"{method}, together" for method in CELLS]


def step_cells(setup: Setup) -> list[str]:
    """List the methods and the numbers of runs whose steps are measured."""
    counts = (2,) if setup.small else (8, 64, 512)
    return [f"{method}, 1" for method in [*CELLS, "augerino"]] + [f"{m}, {count}" for count in counts for m in CELLS]


def cell_to_measure(setup: Setup, method: str, number: int = 0, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """Return a run of the recipe, small in a dry run; runs with another number have another learning rate."""
    dataset = CELLS.get(method) or ("rotmnist" if release("mnist").locate() else "digits")
    config = (small_config if setup.small else resolve)(method, dataset, 0, SIZES.get(dataset))
    rate = {"trainer.learning_rate": config.trainer.learning_rate * (1 + number / 1000)}
    return changed(config, rate | dict(settings or {}))


def stepper(
    setup: Setup, method: str, count: int, settings: Mapping[str, Any] | None = None
) -> tuple[TrainingLoop, Callable[[], object]]:
    """Build runs at a step at which critics learn. Returns the first, and a function that makes a step of all."""
    configs = [cell_to_measure(setup, method, number, settings) for number in range(count)]
    trainings = [training_of(config, setup.device) for config in configs]
    for training in trainings:
        training.done = training.critics.all_active_from
    return trainings[0], partial(make_steps, trainings[0], 1) if count == 1 else FusedTraining(trainings).step


def cost_of_steps(setup: Setup, cell: str) -> Numbers:
    """Measure the steps of so many runs as one, and of a run alone the evaluation of its test split."""
    method, count = cell.split(", ")
    forget_peak_memory(setup.device)
    try:
        training, step = stepper(setup, method, int(count))
        with training.noise():
            numbers = {"ms": milliseconds_of(setup, step), "launches": launches_of(setup, step)}
    except torch.OutOfMemoryError:
        raise Skipped("they do not fit into the memory") from None
    numbers |= {"ms_a_run": numbers["ms"] / int(count), "peak_bytes": peak_memory(setup.device)}
    if count == "1":
        seconds = [timed(lambda: training.measure(("test",)), setup.device) for _ in range(4)][1:]
        numbers["evaluation_ms"] = 1e3 * statistics.median(seconds)
    return {"dataset": training.config.spec.dataset, **numbers}


def milliseconds_of(setup: Setup, step: Callable[[], object]) -> float:
    """Return the median, over rounds of some steps each, of the milliseconds of a step."""
    rounds, calls = (2, 2) if setup.small else (5, 10)
    for _ in range(3):
        step()
    return (
        1e3
        * statistics.median(timed(lambda: [step() for _ in range(calls)], setup.device) for _ in range(rounds))
        / calls
    )


def launches_of(setup: Setup, step: Callable[[], object]) -> float | None:
    """Count the kernels that a step launches; None where the profiler sees none."""
    if setup.device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(2):
            step()
        torch.cuda.synchronize(setup.device)
    return sum(event.count for event in profiler.key_averages() if event.key.startswith(LAUNCHES)) / 2 or None


def compare_program(setup: Setup, method: str) -> Numbers:
    """Compare the step of eight runs in every form: mapped, recorded, compiled, and several as one CUDA graph."""
    numbers: Numbers = {}

    def add(name: str, step: Callable[[], object], steps: int = 1) -> None:
        ms, launches = milliseconds_of(setup, step) / steps, launches_of(setup, step)
        numbers.update({f"{name}_ms": ms, f"{name}_launches": launches and launches / steps})

    count = 2 if setup.small else 8
    with mock.patch.object(program, "traced", lambda function, tensors, is_compiled: function):
        add("mapped", stepper(setup, method, count)[1])
    add("recorded", stepper(setup, method, count)[1])
    if setup.device.type == "cuda":
        group = group_of(setup, method, count)
        captured = CapturedSteps(group.block(), group.leaves, group.done)
        add("captured", lambda: captured(group.leaves, group.done), STEPS)
    if not setup.small:
        began = time.perf_counter()
        _, step = stepper(setup, method, count, {"trainer.compile": True})
        step()
        numbers["compile_seconds"] = time.perf_counter() - began
        add("compiled", step)
    return numbers | {"ratio": numbers["mapped_ms"] / numbers["recorded_ms"]}


def group_of(setup: Setup, method: str, count: int) -> FusedTraining:
    """Make a group of long runs ahead of steps that are alike, whose programs are recorded."""
    long = {"trainer.steps": 10_000, "trainer.epochs": None}
    configs = [cell_to_measure(setup, method, number, long) for number in range(count)]
    trainings = [training_of(config, setup.device) for config in configs]
    group = FusedTraining(trainings)
    group.done = max(training.critics.all_active_from for training in trainings)
    for _ in range(4):
        group.step()
    return group


def compare_captured(setup: Setup, method: str) -> Numbers:
    """Compare sixteen steps as one CUDA graph, and sixteen more, with the same steps one by one."""
    ours, theirs = (group_of(setup, method, 2 if setup.small else 8) for _ in range(2))
    block = ours.block()
    steps = CapturedSteps(block, ours.leaves, ours.done) if setup.device.type == "cuda" else None
    with torch.no_grad():
        for _ in range(2):
            block.begin(ours.done)
            ours.leaves, _ = block.steps(ours.leaves) if steps is None else steps(ours.leaves, ours.done)
            ours.done += STEPS
    for _ in range(2 * STEPS):
        theirs.step()
    pairs = [(one.double(), other.double()) for one, other in zip(ours.leaves, theirs.leaves, strict=True)]
    largest = max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-6)) for one, other in pairs)
    return {"ok": largest <= TOLERANCES["float32"], "float32": largest}


def compare_autocast(setup: Setup, method: str) -> Numbers:
    """Compare an epoch in float32 and with bfloat16; in both, images and kernels are laid out channels last."""
    if not release("mnist").locate():
        raise Skipped("the files of mnist are not here; INVBENCH_DATA names their folder")
    numbers: Numbers = {}
    for name, autocast in (("float32", False), ("bfloat16", True)):
        settings = {"trainer.epochs": 1, "trainer.autocast": autocast, "trainer.measure_invariance": "off"}
        record = invbench.run(method, "rotmnist", settings=settings, device=str(setup.device), out=setup.folder())
        numbers |= {
            f"{name}_seconds": record.cost["training_seconds"],
            f"{name}_accuracy": record.metrics["test_accuracy"],
        }
    return numbers | {"ratio": numbers["float32_seconds"] / numbers["bfloat16_seconds"]}


def runs_per_hour(setup: Setup, cell: str) -> Numbers:
    """Measure a sweep of 16 short runs, the start of its processes included."""
    file = sweep_file(setup.folder(), *((1, 3) if setup.small else (8, 1000)))
    runs, seconds = sweep_of(setup, file, int(cell.split()[0]))
    done, step = int((runs["status"] == "done").sum()), runs["cost.seconds_per_step"].median()
    return {"ok": done == len(runs), "runs_per_hour": 3600 * done / seconds, "ms": 1e3 * step, "sweep_seconds": seconds}


def output_of(setup: Setup, cell: str) -> Numbers:
    """Keep what a script prints: the ratios, and both of their sides."""
    module, options = SCRIPTS[cell]
    try:
        script = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Skipped(str(error)) from None
    text = io.StringIO()
    with mock.patch.dict(os.environ), redirect_stdout(text):  # one sets INVBENCH_DATA
        script.main(**options, device=str(setup.device))
    return {"lines": text.getvalue().splitlines()}


def compare_fused(setup: Setup, cell: str) -> Numbers:
    """Compare 32 shortened runs of the first method trained together with the same one after another."""
    script, (steps, seeds) = importlib.import_module("benchmark_fusing"), (3, 2) if setup.small else (FUSED[cell], 32)
    case = script.CASES[cell]
    settings = case.settings | {"trainer.steps": steps, "trainer.epochs": None}
    case = replace(case, settings=settings, timed=2)
    configs = [resolve(case.methods[0], case.dataset, seed, settings) for seed in range(seeds)]
    seconds = script.measured(case, configs, str(setup.device))
    return {"runs": seeds, "steps": steps, **seconds, "ratio": seconds["alone"] / seconds["together"]}


CHECKS: dict[str, Part] = {
    "same step": (compare_step, lambda setup: METHODS.entries()),
    "symmetry": (symmetry_error, lambda setup: SYMMETRY),
    "resume": (compare_resumed, lambda setup: RESUMED),
    "together": (compare_together, lambda setup: CELLS),
    "captured": (compare_captured, lambda setup: CELLS),
    "waits": (count_waits, wait_cells),
    "out of memory": (run_out_of_memory, lambda setup: ["erm"]),
    "smoke": (smoke_sweep, lambda setup: ["4 at a time"]),
}
MEASUREMENTS: dict[str, Part] = {
    "steps": (cost_of_steps, step_cells),
    "program": (compare_program, lambda setup: CELLS),
    "rotmnist": (compare_autocast, lambda setup: ["augerino"]),
    "jobs": (runs_per_hour, lambda setup: [f"{count} at a time" for count in ((2,) if setup.small else (1, 4, 8))]),
    "scripts": (output_of, lambda setup: list(SCRIPTS)[:2] if setup.small else SCRIPTS),
    "fusing": (compare_fused, lambda setup: list(FUSED)[:1] if setup.small else FUSED),
}

if __name__ == "__main__":
    typer.run(main)
