"""A folder of four runs, one of which is damaged in some way, and the verbs that read it or go on with it."""

import atexit
import json
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from cells import SMALL
from fuzzing import Case, damaged
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from invbench.results.load import INDEX
from invbench.runs.config import parse_assignments
from invbench.runs.lease import Owner
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig, resolve
from invbench.system.provenance import sources_hash
from invbench.training.runner import run_one

Damage = Callable[[Path], None]
"""What is done to the folder of a run."""
SETTINGS = SMALL["spirals"] | {"trainer.steps": 20, "trainer.evaluate_every": 5}
TEXTS = [f"{name}={value}" for name, value in SETTINGS.items()]
MUTATIONS = 60
MOST_VERBS = 3
"""That meet one damage: the first that may, and others that are drawn once and for all."""


def config(method: str, seed: int) -> RunConfig:
    """Return the configuration of one of the runs."""
    return resolve(method, "spirals", seed, parse_assignments(TEXTS))


VICTIM = config("vrex", 0).spec.run_id
QUICK = ["--steps", "3", "--vectors", "1", "--top", "1", "--device", "cpu"]
VERBS: dict[str, list[str]] = {
    "table": ["table"],
    "report": ["report"],
    "curves": ["plot", "curves"],
    "cost": ["plot", "cost"],
    "spectrum": ["analyze", "spectrum", f"results/{VICTIM}", *QUICK],
    "run": ["run", "-m", "vrex", "-d", "spirals", "--seed", "0", "--device", "cpu"]
    + [part for text in TEXTS for part in ("--set", text)],
    "compare": ["compare", "results", "results"],
    "best": ["table", "--select", "best_validation", "--format", "csv"],
    "rerun": ["rerun-best", "--dry-run"],
    "published": ["table", "--vs-published"],
}
CURVES = ("report", "curves")
ALL = ("table", "run", "spectrum", "rerun")
BOTH = ("table", "run")
TABLES = ("table", "report", "curves", "cost", "compare", "best", "rerun", "published")


@cache
def runs() -> Path:
    """Make the folder with the four runs, undamaged; it is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="runs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for method in ("erm", "vrex"):
        for seed in (0, 1):
            run_one(config(method, seed), Options(device="cpu", out=folder / "results"))
    return folder / "results"


def whole(name: str) -> bytes:
    """Read one of the victim's files."""
    return (runs() / VICTIM / name).read_bytes()


def written(name: str, content: str | bytes | Callable[[], bytes]) -> Damage:
    """Return a damage that writes other content into a file."""

    def damage(folder: Path) -> None:
        payload = content() if callable(content) else content
        (folder / name).write_bytes(payload if isinstance(payload, bytes) else payload.encode())

    return damage


def edited(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Return a damage that changes the record."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / "record.json").read_text())
        change(record)
        (folder / "record.json").write_text(json.dumps(record))

    return damage


def put(*path: str, value: Any) -> Damage:
    """Return a damage that puts another value somewhere into the record."""

    def change(record: dict[str, Any]) -> None:
        for name in path[:-1]:
            record = record[name]
        record[path[-1]] = value

    return edited(change)


def unfinished(damage: Damage) -> Damage:
    """Return a damage that removes the record, too."""

    def both(folder: Path) -> None:
        (folder / "record.json").unlink()
        damage(folder)

    return both


def replaced_by_folder(name: str) -> Damage:
    """Return a damage that replaces a file by a folder."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def cases() -> list[Case]:
    """Return some cases of each damage, with verbs that may meet it."""
    groups = [
        _records(), _parts(), _metrics(), _specs_in_records(), _specifications(), _curves(), _checkpoints(), _claims(),
        _indexes(), _names(), _mutations(),
    ]  # fmt: skip
    return [case for group in groups for case in group]


def _cases(label: str, damage: Damage, verbs: tuple[str, ...]) -> list[Case]:
    def prepare(folder: Path) -> None:
        shutil.copytree(runs(), folder / "results")
        damage(folder / "results" / VICTIM)

    drawn = random.Random(label).sample(verbs[1:], min(len(verbs) - 1, MOST_VERBS - 1))  # noqa: S311
    return [Case(f"{label} | {verb}", VERBS[verb], prepare) for verb in (verbs[0], *drawn)]


def _each(group: str, damages: Mapping[str, Damage], verbs: tuple[str, ...]) -> list[Case]:
    return [case for label, damage in damages.items() for case in _cases(f"{group} {label}", damage, verbs)]


def _records() -> list[Case]:
    texts: dict[str, str | bytes] = {
        "empty": "", "not utf-8": b"\xff\xfe{}", "list": "[]", "null": "null", "deep": "[" * 100_000,
        "deep table": '{"a":' * 50_000 + "1" + "}" * 50_000, "large": b"x" * 2**25,
    }  # fmt: skip
    versions = {
        "huge": 10**30, "99": 99, "0": 0, "-1": -1, "1.5": 1.5, "text": "2", "null": None, "true": True, "1": 1,
    }  # fmt: skip
    damages: dict[str, Damage] = {label: written("record.json", text) for label, text in texts.items()}
    damages |= {f"version {label}": put("schema_version", value=value) for label, value in versions.items()}
    damages |= {
        "extra": put("more", value=1),
        "status": put("status", value="running"),
        "surrogate": lambda folder: _surrogate(folder),
        "folder": replaced_by_folder("record.json"),
        "emptied": _emptied,
        "no specification": lambda folder: (folder / "spec.yaml").unlink(),
        "pipe": lambda folder: _pipe(folder / "record.json"),
    }
    return _each("record", damages, BOTH)


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _surrogate(folder: Path) -> None:
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed", "message": "\ud800"}))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _parts() -> list[Case]:
    data = {
        "metric list": ("metric", [1]), "metric table": ("metric", {"a": 1}), "metric number": ("metric", 7),
        "metric of none": ("metric", "nothing"), "primary list": ("primary", [1]), "primary of none": ("primary", "x"),
        "direction": ("higher_is_better", "yes"), "no direction": ("higher_is_better", None),
        "fingerprint list": ("fingerprint", [1]), "fingerprint null": ("fingerprint", None),
        "fingerprint of others": ("fingerprint", "x"), "environments text": ("environments", "a"),
        "environments many": ("environments", 2**40), "variant list": ("variant", ["a"]), "units list": ("units", [1]),
    }  # fmt: skip
    profiles = {
        "no changes": {"rotation": {}}, "a list": [1], "text": {"rotation": {"changes": ["a"]}},
        "none": {"rotation": {"changes": []}}, "no magnitudes": {"rotation": {"changes": [1.0]}},
        "lengths": {"rotation": {"changes": [1.0], "magnitudes": [0.0, 1.0]}},
        "fine": {"rotation": {"changes": [1.0], "magnitudes": [0.0]}},
    }  # fmt: skip
    costs = {
        "negative": {"wall_seconds": -1, "seconds_per_step": 0.0, "peak_memory_bytes": 0},
        "nan": {"wall_seconds": float("nan"), "seconds_per_step": float("nan"), "peak_memory_bytes": 1e308},
        "zero": {"wall_seconds": 0, "seconds_per_step": 0, "peak_memory_bytes": 0},
        "text": {"wall_seconds": "a"},
        "some": {"wall_seconds": 1.0},
    }
    chosen = {
        "none": None, "empty": {"step": 5, "metrics": {}}, "negative": {"step": -5, "metrics": {"test_accuracy": 1}},
        "huge": {"step": 10**30, "metrics": {}},
    }  # fmt: skip
    collected = [
        case for name in ("code", "data", "cost", "machine", "engine", "metrics")
        for case in _cases(f"record without {name}", put(name, value={}), (*ALL, "report"))
    ]  # fmt: skip
    collected += _each("data", {label: put("data", name, value=value) for label, (name, value) in data.items()}, TABLES)
    collected += _each(
        "invariance",
        {label: put("invariance", value={"generators": value}) for label, value in profiles.items()},
        ("table", "report"),
    )
    collected += _each("cost", {label: put("cost", value=value) for label, value in costs.items()}, TABLES)
    collected += _each("best", {label: put("best_validation", value=value) for label, value in chosen.items()}, TABLES)
    nasty = {"status": "failed", "kind": "<script>", "message": "x\n\x00\x1b[31m", "traceback": "t"}
    failures: dict[str, Damage] = {
        "without a kind": put("status", value="failed"),
        "with marks": edited(lambda record: record.update(nasty)),
        "at no time": put("finished", value=""),
        "at an odd time": put("finished", value="zzz\n"),
        "of another run": put("run_id", value="../../x"),
    }
    return collected + _each("record", failures, (*ALL, "report", "published"))


def _metrics() -> list[Case]:
    names = (
        *("method", "dataset", "seed", "status", "path", "run_id", "step", "data.metric", "trainer.steps", "cost.x"),
        *("best_validation.step", "", "\x1b[31m", "a\nb", "$x$", "$x", "test_accuracy_1", "members", "_key"),
    )
    collected = _each("metric named", {repr(name): put("metrics", name, value=1.5) for name in names}, TABLES)
    values = {
        "null": None, "infinity": float("inf"), "nan": float("nan"), "text": "a", "huge": 10**400, "list": [1.0],
        "1e308": 1e308, "true": True,
    }  # fmt: skip
    return collected + _each(
        "metric", {label: put("metrics", "test_accuracy", value=value) for label, value in values.items()}, ALL
    )


def _specs_in_records() -> list[Case]:
    changes: dict[str, Damage] = {
        "method list": put("spec", "method", value=["a"]),
        "method unknown": put("spec", "method", value="nothing"),
        "methods unknown": put("spec", "method", value="a+b"),
        "method markup": put("spec", "method", value="$x_{<b>\x1b[31m"),
        "dataset unknown": put("spec", "dataset", value="nothing"),
        "backbone unknown": put("spec", "backbone", value="nothing"),
        "extra setting": put("spec", "trainer", "nothing", value=1),
        "setting with a line": put("spec", "trainer", "a\nb", value=1),
        "lacks a setting": edited(lambda record: record["spec"]["trainer"].pop("floor")),
        "setting table": put("spec", "trainer", "steps", value={"a": {"b": 1}}),
        "setting list": put("spec", "trainer", "steps", value=[1, [2]]),
        "setting list of tables": put("spec", "trainer", "steps", value=[{"a": 1}]),
        "setting huge": put("spec", "trainer", "steps", value=10**400),
        "setting nan": put("spec", "trainer", "learning_rate", value=float("nan")),
        "held out": put("spec", "trainer", "held_out_environment", value="a"),
        "no settings": put("spec", "method_settings", value={}),
        "seed negative": put("spec", "seed", value=-1),
        "seed huge": put("spec", "seed", value=2**40),
        "seed last": put("spec", "seed", value=2**32 - 1),
        "protocol": put("spec", "protocol", value="x"),
    }
    return _each("spec", changes, (*TABLES, "run", "spectrum"))


def _specifications() -> list[Case]:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    )
    texts: dict[str, str | bytes] = {
        "empty": "", "not utf-8": b"\xff\xfe\x00", "list": "[1]", "deep": "[" * 5000,
        "deep and closed": "a: " + "[" * 900 + "]" * 900,
        "tag": "!!python/object/apply:os.system [id]\n", "control": "a: \x01\n", "int": "seed: !!int abc\n",
        "date": "seed: 2020-13-45\n", "timestamp": "seed: !!timestamp x\n", "binary": "seed: !!binary '*'\n",
        "bool": "seed: !!bool abc\n", "complex key": "? [1]\n: 2\n", "recursive": "&a {method: *a}\n",
        "no anchor": "method: *x\n", "bomb": bomb, "digits": f"seed: {'9' * 5000}\n",
        "surrogate": 'method: "\\ud800"\n', "large": b"x" * 2**25,
    }  # fmt: skip
    damages: dict[str, Damage] = {label: written("spec.yaml", text) for label, text in texts.items()}
    damages["folder"] = replaced_by_folder("spec.yaml")
    damages["dangling"] = lambda folder: _linked(folder / "spec.yaml", "/nonexistent")
    damages["loop"] = lambda folder: _linked(folder / "spec.yaml", "spec.yaml")
    damages["pipe"] = lambda folder: _pipe(folder / "spec.yaml")
    gone = {f"{label}, no record": unfinished(damage) for label, damage in damages.items()}
    return _each("spec.yaml", damages, ("table", "spectrum", "rerun", "run")) + _each(
        "spec.yaml", gone, ("table", "report", "run", "compare")
    )


def _linked(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _curves() -> list[Case]:
    def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
        return lambda folder: change(pd.read_parquet(folder / "curves.parquet")).to_parquet(folder / "curves.parquet")

    contents: dict[str, str | bytes | Callable[[], bytes]] = {
        "empty": b"", "garbage": b"x" * 1000, "magic": b"PAR1PAR1",
        "cut short": lambda: whole("curves.parquet")[:-100],
        "half": lambda: whole("curves.parquet")[: len(whole("curves.parquet")) // 2],
        "long footer": lambda: whole("curves.parquet")[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1",
    }  # fmt: skip
    changes: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
        "without step": lambda rows: rows.drop(columns="step"),
        "text as step": lambda rows: rows.assign(step="a"),
        "no step": lambda rows: rows.assign(step=None),
        "nan as step": lambda rows: rows.assign(step=float("nan")),
        "text": lambda rows: rows.assign(test_accuracy="a"),
        "lists": lambda rows: rows.assign(test_accuracy=pd.Series([[1]] * len(rows))),
        "no rows": lambda rows: rows.iloc[:0],
        "infinity": lambda rows: rows.assign(test_accuracy=float("inf")),
        "step as index": lambda rows: rows.set_index("step"),
        "method": lambda rows: rows.assign(method=1.0),
        "run and seed": lambda rows: rows.assign(run_id=1.0, seed=3),
        "every step three times": lambda rows: pd.concat([rows] * 3),
    }
    damages = {label: written("curves.parquet", content) for label, content in contents.items()}
    damages |= {label: table(change) for label, change in changes.items()}
    damages["folder"] = replaced_by_folder("curves.parquet")
    logs: dict[str, Damage] = {
        "folder": unfinished(replaced_by_folder("log.txt")),
        "not utf-8": written("log.txt", b"\xff\xfe\x00<script>alert(1)</script>\n"),
    }
    return _each("curves", damages, ("report", "curves", "run")) + _each("log", logs, ("report", "run"))


@cache
def _checkpoint() -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, Any]]:
    """Read the tensors, metadata and facts of the victim's checkpoint."""
    path = runs() / VICTIM / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return load_file(path), metadata, json.loads(metadata["facts"])


def _checkpoints() -> list[Case]:
    def header(content: bytes) -> bytes:
        return struct.pack("<Q", len(content)) + content

    def facts(text: str) -> bytes:
        return header(json.dumps({"__metadata__": {"facts": text}}).encode())

    contents: dict[str, bytes | Callable[[], bytes]] = {
        "empty": b"", "8 bytes": b"\xff" * 8, "huge header": struct.pack("<Q", 2**63) + b"{}",
        "no header": header(b"{}"),
        "header not utf-8": header(b"\xff\xfe{}"), "header list": header(b"[]"), "facts list": facts("[]"),
        "facts deep": facts("[" * 100_000), "facts number": header(b'{"__metadata__":{"facts":1}}'),
        "metadata list": header(b'{"__metadata__":[]}'),
        "cut short": lambda: whole("checkpoint.safetensors")[:-50],
        "longer": lambda: whole("checkpoint.safetensors") + b"x" * 100,
    }  # fmt: skip
    damages: dict[str, Damage] = {
        label: written("checkpoint.safetensors", content) for label, content in contents.items()
    }
    without_record = {f"{label}, no record": unfinished(damage) for label, damage in damages.items()}
    return [
        *_each("checkpoint", without_record, ("run", "table")),
        *_each("checkpoint", damages, ("spectrum",)),
        *_each("checkpoint", {label: unfinished(damage) for label, damage in _of_facts().items()}, ("run",)),
        *_each("checkpoint", {label: unfinished(damage) for label, damage in _of_tensors().items()}, ("run",)),
        *_each("finished checkpoint", _of_tensors(), ("spectrum",)),
    ]


def _saved(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object], checked: bool = False) -> Damage:
    """Return a damage that changes tensors and facts, without their checksum unless it is kept."""

    def damage(folder: Path) -> None:
        tensors, metadata, facts = _checkpoint()
        tensors, facts = dict(tensors), facts | {"step": 10}
        change(tensors, facts)
        header = {"facts": json.dumps(facts)} | ({"sha256": metadata["sha256"]} if checked else {})
        save_file(tensors, folder / "checkpoint.safetensors", metadata=header)

    return damage


def _of_facts() -> dict[str, Damage]:
    values: dict[str, Any] = {
        "step text": ("step", "x"), "step negative": ("step", -5), "step huge": ("step", 10**9),
        "step fraction": ("step", 10.5), "step null": ("step", None), "objective steps text": ("objective_steps", "x"),
        "seconds text": ("seconds", "x"), "step as it was": ("step", 10),
    }  # fmt: skip
    damages = {
        label: _saved(lambda _, facts, name=name, value=value: facts.update({name: value}))  # type: ignore[misc]
        for label, (name, value) in values.items()
    }
    damages["no facts"] = _saved(lambda _, facts: facts.clear())
    damages["no objective steps"] = _saved(lambda _, facts: facts.pop("objective_steps"))
    damages["another checksum"] = _saved(lambda _, facts: facts.update(step=5), checked=True)
    return damages


def _of_tensors() -> dict[str, Damage]:
    def first(tensors: Mapping[str, torch.Tensor], part: str) -> str:
        return next(name for name in sorted(tensors) if name.startswith(f"{part}/"))

    def changed(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
        def of_first(tensors: dict[str, torch.Tensor], _: object) -> None:
            name = first(tensors, part)
            tensors[name] = change(tensors[name])

        return _saved(of_first)

    def without(*parts: str) -> Damage:
        def drop(tensors: dict[str, torch.Tensor], _: object) -> None:
            for name in [name for name in tensors if name.startswith(parts)]:
                del tensors[name]

        return _saved(drop)

    def more(**others: torch.Tensor) -> Damage:
        return _saved(lambda tensors, _: tensors.update(others))

    damages = {
        "no model": without("model/"), "no optimizer": without("optimizer/"), "no random": without("random/"),
        "no objective sum": without("objective_sum"),
        "one weight less": _saved(lambda tensors, _: tensors.pop(first(tensors, "model"))),
        "one moment less": _saved(lambda tensors, _: tensors.pop(first(tensors, "optimizer"))),
        "weight shape": changed("model", lambda _: torch.zeros(3, 3)),
        "weight of integers": changed("model", lambda weight: weight.to(torch.int64)),
        "weight in double": changed("model", torch.Tensor.double),
        "weight nan": changed("model", lambda weight: weight * torch.nan),
        "moment shape": changed("optimizer", lambda _: torch.zeros(2)),
        "moment in half": changed("optimizer", torch.Tensor.half),
        "loss vector": more(loss=torch.zeros(4)), "loss integer": more(loss=torch.zeros((), dtype=torch.int64)),
        "random short": more(**{"random/cpu": torch.zeros(3, dtype=torch.uint8)}),
        "random float": more(**{"random/cpu": torch.zeros(5056)}),
        "random zeros": more(**{"random/cpu": torch.zeros(5056, dtype=torch.uint8)}),
        "name clash": more(model=torch.zeros(1)), "name clash below": more(**{"loss/x": torch.zeros(1)}),
        "empty names": more(**{"": torch.zeros(1), "//": torch.zeros(1)}),
    }  # fmt: skip
    damages["model tensor"] = _saved(_only_a_tensor)
    return damages


def _only_a_tensor(tensors: dict[str, torch.Tensor], _: object) -> None:
    tensors.clear()
    tensors["model"] = torch.zeros(1)


WATCHED = ("far", "garbage")
"""Claims that others watch for ten seconds where they are old."""


def _claims() -> list[Case]:
    holder = Owner.this_process().model_dump() | {"token": "t", "born": 0.0}
    texts: dict[str, str | bytes] = {
        "empty": "", "garbage": "xx", "list": "[]", "deep": "[" * 100_000, "not utf-8": b"\xff",
        "nan born": json.dumps(holder | {"born": float("nan")}),
        "far": json.dumps(holder | {"machine": "other"}),
        "host of marks": json.dumps(holder | {"machine": "other", "host": "<b>\n\x1b[31m"}),
    }  # fmt: skip
    texts |= {f"pid {pid}": json.dumps(holder | {"pid": pid}) for pid in (-5, 0, 2**40, 2**70)}
    collected = []
    for label, text in texts.items():
        now = unfinished(written("claim.json", text))
        collected += _cases(f"claim {label}", now, BOTH)
        if label in WATCHED:
            collected += _cases(f"old claim {label}", partial(_at, 1e9, now), ("run",))
            collected += _cases(f"future claim {label}", partial(_at, 4e9, now), ("run",))
    return collected + _cases("claim folder", unfinished(replaced_by_folder("claim.json")), BOTH)


def _at(seconds: float, damage: Damage, folder: Path) -> None:
    damage(folder)
    os.utime(folder / "claim.json", (seconds, seconds))


def _indexes() -> list[Case]:
    def index(columns: Mapping[str, list[Any]], metadata: Mapping[Any, Any]) -> Damage:
        return lambda folder: pq.write_table(
            pa.table(dict(columns)).replace_schema_metadata(dict(metadata)), folder.parent / INDEX
        )

    def row(content: object) -> Damage:
        def damage(folder: Path) -> None:
            status = (folder / "record.json").stat()
            mark = f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"
            index({"path": [VICTIM], "mark": [mark], "row": [content]}, {"sources": sources_hash()})(folder)

        return damage

    damages = {
        "garbage": written(f"../{INDEX}", "x" * 100), "folder": lambda folder: (folder.parent / INDEX).mkdir(),
        "metadata not utf-8": index({"path": ["a"], "mark": ["b"], "row": [b"{}"]}, {b"sources": b"\xff\xfe"}),
        "numbers": index({"path": [1], "mark": [2.0], "row": [3]}, {"sources": sources_hash()}),
        "a column less": index({"path": ["a"]}, {"sources": sources_hash()}),
    }  # fmt: skip
    rows = {"garbage": b"xx", "list": b"[]", "null": None, "empty": b"{}", "text": "{}", "deep": b"[" * 10_000}
    damages |= {f"row {label}": row(content) for label, content in rows.items()}
    return _each("index", damages, ("table", "report"))


def _names() -> list[Case]:
    def renamed(name: bytes) -> Damage:
        def damage(folder: Path) -> None:
            folder.rename(folder.with_name(os.fsdecode(name)))

        return damage

    def nested(folder: Path) -> None:
        deep = folder.parent
        for _ in range(600):
            deep = deep / "d"
            deep.mkdir()

    damages: dict[str, Damage] = {
        "not utf-8": renamed(b"\xff\xfe"), "markup": renamed(b"<script>alert(1)<a>"), "escape": renamed(b"\x1b[31m"),
        "mathematics": renamed(b"$x_{"), "long": renamed(b"n" * 255),
        "copy": lambda folder: _copied(folder, "copy of it"),
        "copy elsewhere": lambda folder: _copied(folder, f"more/{VICTIM}"),
        "loop": lambda folder: (folder.parent / "loop").symlink_to(".."),
        "deep": nested,
    }  # fmt: skip
    return _each("name", damages, TABLES)


def _copied(folder: Path, name: str) -> None:
    shutil.copytree(folder, folder.parent / name)


def _mutations() -> list[Case]:
    """Return cases with files in which some bytes are changed."""
    files = {"record.json": TABLES, "spec.yaml": BOTH, "curves.parquet": CURVES, "checkpoint.safetensors": ("run",)}
    mutations = []
    for number in range(MUTATIONS):
        rng = random.Random(number)  # noqa: S311
        name = rng.choice(sorted(files))
        damage = written(name, partial(_mutated, name, number))
        keep = name in ("record.json", "curves.parquet") or rng.random() < 0.5
        mutations += _cases(
            f"{name} damaged {number}", damage if keep else unfinished(damage), (rng.choice(files[name]),)
        )
    return mutations


def _mutated(name: str, seed: int) -> bytes:
    return damaged(whole(name), random.Random(seed))  # noqa: S311
