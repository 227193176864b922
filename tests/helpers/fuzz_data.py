"""Users' data: tables, figures, and the files of the releases, damaged or made to do harm."""

import bz2
import functools
import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from cells import SMALL
from fuzzing import Case, damaged
from numpy.typing import NDArray
from pyarrow import parquet
from scipy.io import savemat
from standins import METHANE, molecule, write_cifar, write_mnist, write_qm9

Content = str | bytes | Callable[[Path], Any]
"""What a file holds, or what makes the file."""
MUTATIONS = 12
SHORT = ("--device", "cpu", "--set", "trainer.steps=2")
BOMB = 20 * gzip.compress(bytes(2**26))
"""What gzip unpacks to 1.3 GB."""


def cases() -> list[Case]:
    """Return the cases of each kind of file."""
    tables = (_tables(), _parquet(), _names_of_tables(), _any_tables())
    groups = (*tables, _figures(), _digits(), _batches(), _faces(), _molecules())
    return [case for group in groups for case in group]


def _write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _run(dataset: str, **settings: object) -> list[str]:
    small = SMALL[dataset] | settings
    return ["run", "-m", "erm", "-d", dataset, *SHORT, *(f"--set={k}={json.dumps(v)}" for k, v in small.items())]


def _mutations(content: bytes) -> Iterator[tuple[str, bytes]]:
    for seed in range(MUTATIONS):
        yield f"damaged {seed}", damaged(content, random.Random(seed))  # noqa: S311


# --- tables ----------------------------------------------------------------------------------------------------------


def _frame(**columns: object) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"_label": draw.integers(0, 2, 60), "_mass": draw.normal(size=60), "a": draw.normal(size=60)})
    return frame.assign(**{name: column(frame) if callable(column) else column for name, column in columns.items()})


def _text(**columns: object) -> str:
    return _frame(**columns).to_csv(index=False)


def _table(label: str, content: Content, *more: str, suffix: str = "csv", refused: bool = False) -> Case:
    arguments = [
        *_run("tabular_nuisance", **{"dataset.nuisance": ["_mass"], "trainer.batch_size": 4}),
        f"--set=dataset.table=t.{suffix}",
        *more,
    ]
    return Case(f"table {label}", arguments, lambda folder: _write(folder / f"t.{suffix}", content), refused=refused)


def _tables() -> Iterator[Case]:
    head, rows = "_label,_mass,a\n", "1,2,3\n0,1,2\n" * 30
    accepted: dict[str, Content] = {
        "good": _text(), "label of bools": _text(_label=lambda frame: frame._label == 1),
        "mass constant": _text(_mass=1), "label once": _text(_label=[1] + [0] * 59), "no value": _text(a=np.nan),
        "constant": _text(a=1), "bools": _text(a=True), "byte-order mark": b"\xef\xbb\xbf" + (head + rows).encode(),
        "many digits": head + "1,2,99999999999999999999999999\n" + rows, "short rows": head + "1,2\n" + rows,
        "five rows": head + rows[:30],
    }  # fmt: skip
    refused: dict[str, Content] = {
        "no label": _frame().drop(columns="_label").to_csv(index=False), "label text": _text(_label="s"),
        "label gone": _text(_label=np.nan), "label 2": _text(_label=2), "only signal": _text(_label=1),
        "only background": _text(_label=0), "mass gone": _text(_mass=np.nan), "mass infinite": _text(_mass=np.inf),
        "mass text": _text(_mass="x"), "infinite": _text(a=-np.inf), "text": _text(a="x"),
        "dates": _text(a="2020-01-01"), "mixed": _text(a=["x"] + [1] * 59), "complex": _text(a="1+2j"),
        "1e39": _text(a=lambda frame: frame.a * 1e39), "mass 1e39": _text(_mass=lambda frame: frame._mass * 1e39),
        "1e308": _text(a=lambda frame: frame.a * 1e308),
        "no features": _frame()[["_label", "_mass"]].to_csv(index=False), "empty": "", "newline": "\n", "no rows": head,
        "one row": head + rows[:6], "two rows": head + rows[:12], "three rows of two": head + rows[:12] + rows[:6],
        "column twice": "_label,_mass,a,a\n" + "1,2,3,4\n0,1,2,3\n" * 30,
        "label twice": "_label,_label,_mass,a\n" + "1,0,2,3\n0,1,1,2\n" * 30,
        "mass twice": "_label,_mass,_mass,a\n" + "1,0,2,3\n0,1,1,2\n" * 30, "ragged": head + "1,2,3\n1,2\n1,2,3,4,5\n",
        "long rows": head + "1,2,3,9\n0,2,3,9\n" * 30, "null bytes": head + "1,2,\0\n0,1,2\n" * 30,
        "latin-1": "_label,_mass,é\n".encode("latin-1") + rows.encode(), "utf-16": (head + rows).encode("utf-16"),
        "semicolons": (head + rows).replace(",", ";"), "open quote": head + '1,2,"' + "x" * 10**6,
        "no name": ",_label,_mass,a\n" + "0,1,2,3\n1,0,1,2\n" * 30, "400 digits": head + f"1,2,{'9' * 400}\n" + rows,
        "folder": lambda path: path.mkdir(), "pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"),
        "dangling": lambda path: path.symlink_to("/nowhere"), "wide": ",".join(map(str, range(10**4))) + "\n",
    }  # fmt: skip
    for label, content in accepted.items():
        yield _table(label, content)
    for label, content in refused.items():
        yield _table(label, content, refused=True)
    bins = "--set=dataset.environments=nuisance_bins"
    yield _table("constant in bins", _text(_mass=1.0), bins, refused=True)
    yield _table("label in bins", _text(_mass=lambda frame: frame._label), bins)
    yield _table("once in bins", _text(_mass=[1.0] + [0.0] * 59), bins, refused=True)
    yield _table("more bins than rows", _text(), bins, "--set=dataset.bins=100000", "--set=trainer.batch_size=null")
    for names in ("[_label]", "[_mass,_mass]", "[]", "[x]", "[1]", "[a]", "[_mass,a]"):
        yield _table(f"nuisance {names}", _text(), f"--set=dataset.nuisance={names}")
    yield _table("fractions", _text(), "--set=dataset.test_fraction=0.9", "--set=dataset.validation_fraction=0.5")
    yield _table("small fraction", _text(), "--set=dataset.test_fraction=1e-9")


def _packed(table: pa.Table | pd.DataFrame) -> bytes:
    stream = io.BytesIO()
    if isinstance(table, pd.DataFrame):
        table.to_parquet(stream)
    else:
        parquet.write_table(table, stream)
    return stream.getvalue()


def _columns(**columns: Any) -> bytes:
    return _packed(pa.table({"_label": [1, 0] * 30, "_mass": [0.1, 0.2] * 30} | columns))


def _parquet() -> Iterator[Case]:
    plain = pa.table({"_label": [1, 0] * 30, "_mass": [0.1, 0.2] * 30, "a": [0.1, 0.2] * 30})
    levels = _frame()
    levels.columns = pd.MultiIndex.from_tuples([(name, "") for name in levels.columns])
    notes = {
        "list": "[]", "nothing": '{"index_columns": ["nothing"], "columns": [], "column_indexes": []}',
        "label": '{"index_columns": ["_label"]}', "table": '{"index_columns": {"a": 1}}', "number": "1", "text": "x",
        "deep": "[" * 10**5, "tables": '{"index_columns": [{"kind": "range"}], "columns": 3}', "not utf-8": b"\xff",
    }  # fmt: skip
    contents: dict[str, Content] = {
        "good": _packed(_frame()), "garbage": b"PAR1xxxxPAR1", "csv": _text(), "empty": b"",
        "categories": _columns(a=pd.Categorical(["x", "y"] * 30)), "decimals": _columns(a=[Decimal("1.5")] * 60),
        "dates": _packed(_frame(a=pd.Timestamp("2020"))), "lists": _columns(a=[[1, 2]] * 60),
        "nulls": _columns(a=[None] * 60), "index": _packed(_frame().set_index("a")),
        "index of labels": _packed(_frame().set_index("_label")), "levels": _packed(levels),
        "structures": _columns(a=[{"b": 1}] * 60), "dotted": _columns(**{"a": [1] * 60, "a.b": [2] * 60}),
        "half": _columns(a=np.ones(60, np.float16)), "largest integers": _columns(a=[2**63 - 1] * 60),
        "bytes": _columns(a=[b"x"] * 60),
        "label null": _packed(pa.table({"_label": [1, None] * 30, "_mass": [0.1, 0.2] * 30, "a": [1, 2] * 30})),
        "text to leave out": _columns(a=[1, 2] * 30, _note=["x"] * 60), "folder": lambda path: path.mkdir(),
    }  # fmt: skip
    contents |= {f"notes {k}": _packed(plain.replace_schema_metadata({"pandas": v})) for k, v in notes.items()}
    for label, content in contents.items():
        yield _table(f"parquet {label}", content, suffix="parquet")
    for names in (["_label", "_mass", "a", "a"], ["_label", "_label", "_mass", "a"], ["_label", "_mass", "_mass", "a"]):
        columns = [[1, 0] * 30, [0, 1] * 30, [1, 0] * 30, [1, 2] * 30]
        content = _packed(pa.table([pa.array(column) for column in columns], names=names))
        yield _table(f"parquet of {names}", content, suffix="parquet", refused=True)
    for label, content in _mutations(_packed(_frame())):
        yield _table(f"parquet {label}", content, suffix="parquet")


def _any_table(label: str, content: Content, *more: str, suffix: str = "csv", refused: bool = False) -> Case:
    given = {"path": f"t.{suffix}", "target": "_label", "missing": "mean"}
    sets = [f"--set=dataset.{name}={value}" for name, value in given.items()]
    arguments = ["run", "-m", "erm", "-d", "table", *SHORT, "--set=trainer.batch_size=4", *sets, *more]
    return Case(
        f"any table {label}", arguments, lambda folder: _write(folder / f"t.{suffix}", content), refused=refused
    )


def _any_tables() -> Iterator[Case]:
    texts = _frame(a=lambda frame: np.where(frame._mass > 0, "x", "y\n"), part=["train"] * 40 + ["test"] * 20)
    for suffix, content in (("csv", texts.to_csv(index=False).encode()), ("parquet", _packed(texts))):
        yield _any_table(f"{suffix} of texts", content, "--set=dataset.split=part", suffix=suffix)
        for label, damage in _mutations(content):
            yield _any_table(f"{suffix} {label}", damage, "--set=dataset.split=part", suffix=suffix)
    bad = {
        "empty": "", "nul": bytes(1000), "header only": "_label,a\n", "one line": "a" * 2**24,
        "quote": '_label,a\n1,"' + "x\n" * 2**22,
        "one row": "_label,a\n1,2\n", "infinite": "_label,a\n" + "1,inf\n0,1\n" * 9,
        "not utf-8": b"_label,a\n1,\xff\n0,x\n",
    }  # fmt: skip
    for label, content in bad.items():
        yield _any_table(label, content, refused=True)
    nested = pa.table({"_label": [1, 0] * 30, "a": [[1.0, 2.0]] * 60, "b": [{"c": 1}] * 60, "d": [b"\xff"] * 60})
    yield _any_table("nested", _packed(nested), suffix="parquet", refused=True)
    yield _any_table(
        "nested left out",
        _packed(nested.append_column("e", [[0.5, 1.5] * 30])),
        "--set=dataset.exclude=[a, b, d]",
        suffix="parquet",
    )
    yield _any_table("weights", _text(w=range(60)), "--set=dataset.weight=w")
    for label, weights in {
        "negative": -1.0, "infinite": np.inf, "gone": np.nan, "text": "x", "bools": True, "dates": "2020-01-01",
        "zero": 0, "1e308": 1e308, "1e-308": 1e-308, "once gone": [None] + [1.0] * 59, "400 digits": "9" * 400,
    }.items():  # fmt: skip
        yield _any_table(f"weights {label}", _text(w=weights), "--set=dataset.weight=w", refused=True)
    yield _any_table("weights of no column", _text(), "--set=dataset.weight=w", refused=True)
    for pattern in ("[", "[a", "*" * 1000, "?" * 100, "", "\\"):
        yield _any_table(
            f"pattern {pattern[:9]}", texts.to_csv(index=False), f"--set=dataset.exclude={json.dumps([pattern])}"
        )


def _names_of_tables() -> Iterator[Case]:
    names = (
        "http://127.0.0.1:9/t.csv", "file:///etc/passwd.csv", "s3://bucket/t.parquet", "ftp://127.0.0.1:9/t.csv",
        "~/t.csv", "''", '"a\\0b.csv"', "t.csv.gz", "t.txt", "/proc/self/mem.csv", f"{'x' * 5000}.csv", "t.csv/t.csv",
        "zip://t.csv", "simplecache::http://127.0.0.1:9/t.parquet",
    )  # fmt: skip
    for name in names:
        yield _table(f"name {name[:40]}", _text(), f"--set=dataset.table={name}", refused=name[0] != "~")


# --- figures ---------------------------------------------------------------------------------------------------------


class Harm:
    """What does harm where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def _arrays(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    save(stream, **{"iggy": np.zeros((3, 32, 32), np.float32)} | arrays)
    return stream.getvalue()


def _with_header(shape: str, kind: str = "'<f4'", content: bytes = b"", packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a file of arrays with this header."""
    head = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        archive.writestr("mario.npy", array)
        archive.writestr("iggy.npy", array)
    return stream.getvalue()


def _unpacked(array: NDArray[Any]) -> bytes:
    """Return an array as a file of its own."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _patched(content: bytes, local: int, central: int, value: int) -> bytes:
    """Return the zip archive with one byte changed in every header."""
    data = bytearray(content)
    for magic, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] = value
            at = data.find(magic, at + 4)
    return bytes(data)


def _figures() -> Iterator[Case]:
    ok = np.zeros((3, 32, 32), np.float32)
    good, harm = _arrays(mario=ok), np.array([Harm()], dtype=object)
    bomb = _with_header("(3000000000,)", content=bytes(10**8))
    contents: dict[str, tuple[Content, bool]] = {
        "good": (good, False), "bytes": (_arrays(mario=ok.astype(np.uint8)), False),
        "packed": (_arrays(np.savez_compressed, mario=ok), False), "pickled": (_arrays(mario=harm), True),
        "pickle": (pickle.dumps(Harm()), True), "one": (_arrays(), True), "shape": (_arrays(mario=ok[:2]), True),
        "nan": (_arrays(mario=ok * np.nan), True), "range": (_arrays(mario=ok + 300), True),
        "large": (_arrays(mario=ok.astype(float) + 1e300), True), "text": (_arrays(mario=np.array("x")), True),
        "complex": (_arrays(mario=ok + 1j), True),
        "structured": (_arrays(mario=np.zeros((3, 32, 32), [("a", "f4")])), True),
        "dates": (_arrays(mario=np.zeros((3, 32, 32), "M8[s]")), True), "empty": (b"", True),
        "garbage": (b"PK\x03\x04" + b"x" * 100, True), "not packed": (_unpacked(ok), True),
        "cut": (good[:-100], True), "shape 1e12": (_with_header("(1000000000000,)"), True),
        "negative": (_with_header("(-5,)"), True), "code": (_with_header("__import__('os').mkdir('harmed')"), True),
        "overflow": (_with_header("(4611686018427387904,4)"), True), "40 GB": (_with_header("(10000000000,)"), True),
        "deep": (_with_header("(" * 9000), True), "minus": (_with_header("-" * 9000 + "1"), True),
        "3-byte numbers": (_with_header("(1,)", "'<f3'", b"xxx"), True),
        "objects": (_with_header("(1,)", "'|O'", bytes(8)), True), "bomb": (bomb, True),
        "bz2": (_with_header("(1,)", content=bytes(4), packing=zipfile.ZIP_BZIP2), True),
        "encrypted": (_patched(good, 6, 8, 1), True), "unknown packing": (_patched(good, 8, 10, 99), True),
        "version": (_patched(good, 4, 6, 255), True), "folder": (lambda path: path.mkdir(), True),
        "pipe": (os.mkfifo, True), "none": (lambda path: None, True),
    }  # fmt: skip
    contents |= {label: (content, False) for label, content in _mutations(good)}
    for label, (content, refused) in contents.items():
        arguments = [*_run("mario_iggy"), "--set=dataset.sprites=s.npz"]
        yield Case(f"figures {label}", arguments, functools.partial(_put, {"s.npz": content}), refused=refused)


def _put(files: Mapping[str, Content], folder: Path) -> None:
    for name, content in files.items():
        _write(folder / name, content)


# --- releases --------------------------------------------------------------------------------------------------------

STANDINS: dict[str, Callable[[Path], Any]] = {
    "rotmnist": lambda data: write_mnist(data / "MNIST/raw"),
    "cifar10": lambda data: write_cifar(data / "cifar-10-batches-bin"),
    "olivetti": lambda data: None,
    "qm9": lambda data: write_qm9(data, 20),
}


def _release(dataset: str, label: str, files: Mapping[str, Content], refused: bool, *arguments: str) -> Case:
    """Return a case that runs on stand-ins of which some files are replaced."""

    def prepare(folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        STANDINS[dataset](data)
        for name, content in files.items():
            (data / f"{name}.gz").unlink(missing_ok=True)
            (data / name).unlink(missing_ok=True)
            _write(data / name, content)

    command = list(arguments) or _run(dataset)
    return Case(f"{dataset} {label}", command, prepare, {"INVBENCH_DATA": "data"}, refused=refused)


def _idx(shape: tuple[int, ...], content: bytes | None = None, kind: int = 8) -> bytes:
    values = bytes(int(np.prod(shape))) if content is None else content
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


def _digits() -> Iterator[Case]:
    images, labels = "MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-labels-idx1-ubyte"
    good = _idx((60, 28, 28))
    contents: dict[str, Content] = {
        "empty": b"", "header cut": good[:10], "255 axes": b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x",
        "no axes": b"\0\0\x08\0x", "40 axes": b"\0\0\x08\x28" + b"\0\0\0\1" * 40 + b"x",
        "2**96": _idx((2**32 - 1,) * 3, b"x"), "2**64": _idx((2**31, 2**31, 4), b""), "none": _idx((0, 28, 28)),
        "other shape": _idx((60, 30, 28)), "flat": _idx((60, 784)), "of floats": _idx((60, 28, 28), kind=13),
        "of labels": _idx((60,)), "packed": gzip.compress(good), "cut": good[:-1], "long": good + b"x",
    }  # fmt: skip
    archives = {
        "cut": gzip.compress(good)[:-9], "garbage": b"xxxx", "trailing": gzip.compress(good) + b"xx", "empty": b"",
        "flipped": gzip.compress(good)[:-6] + b"xxxxxx",
    }  # fmt: skip
    yield _release("rotmnist", "good", {images: good}, False)
    yield _release(
        "rotmnist", "two members", {f"{images}.gz": gzip.compress(good[:100]) + gzip.compress(good[100:])}, False
    )
    for label, content in contents.items():
        yield _release("rotmnist", label, {images: content}, True)
    for label, content in archives.items():
        yield _release("rotmnist", f"archive {label}", {f"{images}.gz": content}, True)
    for label, content in {"200": b"\xc8" * 60, "10": b"\x0a" * 60}.items():
        yield _release("rotmnist", f"label {label}", {labels: _idx((60,), content)}, True)
    yield _release("rotmnist", "few labels", {labels: _idx((10,))}, True)
    for label, start in {"zeros": b"", "images": _idx((2**28 // 784, 28, 28), b""), "some": good}.items():
        yield _release("rotmnist", f"bomb of {label}", {f"{images}.gz": gzip.compress(start) + BOMB}, True)
    bomb: dict[str, Content] = {f"{images}.gz": BOMB}
    yield _release("rotmnist", "bomb to verify", bomb, True, "data", "verify", "mnist")
    for label, content in _mutations(gzip.compress(good)):
        yield _release("rotmnist", label, {f"{images}.gz": content}, False)


class Foreign:
    """What numpy unpickles as an array over bytes that somebody else chose."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return np.ndarray, self.arguments


def _batch(data: Any = None, labels: Any = None) -> bytes:
    data = np.zeros((20, 3072), np.uint8) if data is None else data
    return pickle.dumps({b"data": data, b"labels": [1] * 20 if labels is None else labels}, protocol=2)


def _batches() -> Iterator[Case]:
    binary, python, first = (
        f"cifar-10-batches-{name}" for name in ("bin/test_batch.bin", "py/test_batch", "py/data_batch_1")
    )
    records = bytes([1, *bytes(3072)])
    four = np.zeros((4, 3072), np.uint8)
    pickles: dict[str, bytes] = {
        "harm": _batch(Harm()), "list": pickle.dumps([1]), "none": pickle.dumps(None),
        "no data": pickle.dumps({b"x": 1}), "number": _batch(5), "ragged": _batch(four, [[1], [1, 2]]),
        "text": _batch(four, ["a"] * 4), "rows": _batch(four, [[1]] * 4), "range": _batch(four, [-1, 300, 1, 1]),
        "objects": _batch(np.array([None] * 20)), "foreign data": _batch(Foreign((4,), "O", b"A" * 32), [1] * 4),
        "foreign labels": _batch(four, Foreign((4,), "O", b"A" * 32)), "huge": _batch(Foreign((10**12,), "u1")),
        "strides": _batch(Foreign((4, 3072), "u1", b"A" * 10, 0, (10**9, 1)), [1] * 4),
        "negative": _batch(Foreign((-1,), "u1")), "cut": _batch()[:-20], "memo": b"\x80\x02r\xff\xff\xff\x7f.",
        "long": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f", "marks": b"(" * 100_000 + b".", "pop": b"0.",
        "reference": b"\x80\x02K\x01Q.", "extension": b"\x80\x02\x82\x01.", "buffer": b"\x80\x05\x97.",
        "bytearray": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x7f\0.",
        "key": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.", "many": b"\x80\x02" + b"}" * 10**7, "empty": b"",
        "number of digits": b"I" + b"9" * 10**5 + b"\n.",
        "type": b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00OK\x00K\x01\x87R(K\x03X\x01\x00\x00\x00|NNNK\xffK\xffK?tb.",
    }  # fmt: skip
    binaries = {"empty": b"", "not whole": records * 2 + b"x", "label 10": bytes([10, *bytes(3072)]) * 20}
    yield _release("cifar10", "good", {}, False)
    for label, content in binaries.items():
        yield _release("cifar10", label, {binary: content}, True)
    yield _release("cifar10", "gzip", {f"{binary}.gz": gzip.compress(records * 20)}, False)

    def both(content: bytes) -> dict[str, Content]:
        """Return Python batches in the place of all binary ones; the last has this content."""
        gone: Content = lambda path: None  # noqa: E731
        return {binary: gone, "cifar-10-batches-bin/data_batch_1.bin": gone, first: _batch(), python: content}

    yield _release("cifar10", "python", both(_batch()), False)
    for label, content in pickles.items():
        yield _release("cifar10", f"python {label}", both(content), True)
    for label, content in _mutations(_batch(np.zeros((1, 3072), np.uint8), [1])):
        yield _release("cifar10", f"python {label}", both(content), False)


def _matlab(packed: bool = False, **matrices: Any) -> bytes:
    stream = io.BytesIO()
    savemat(stream, matrices, do_compression=packed)
    return stream.getvalue()


def _faces() -> Iterator[Case]:
    faces: NDArray[np.uint8] = np.zeros((4096, 400), np.uint8)
    good, text = _matlab(faces=faces), _matlab(faces="hello")
    contents: dict[str, bytes] = {
        "empty": b"", "garbage": b"x" * 500, "cut": good[:500], "half": good[: len(good) // 2], "none": _matlab(x=1),
        "shape": _matlab(faces=np.zeros((5, 5))), "cells": _matlab(faces=np.array([1, "a"], dtype=object)),
        "structure": _matlab(faces={"a": 1}), "nan": _matlab(faces=np.full((4096, 400), np.nan)), "text": text,
        "version 7.3": b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\0\2IM" + b"x" * 100, "header": good[:128],
        "kind": good[:128] + b"\x0f\0\0\0" + good[132:], "size": good[:130] + b"\xff\xff\xff\xff" + good[134:],
        "version 4": struct.pack("<5i", 0, 2**30, 2**30, 0, 6) + b"faces\0",
        "complex": _matlab(faces=np.zeros((4096, 400), complex)),
        "bomb": _matlab(True, faces=np.zeros((4096, 40_000), np.uint8)), "range": _matlab(faces=faces + 300.0),
        "zeros": good[:128] + bytes(10**7),
    }  # fmt: skip
    yield _release("olivetti", "good", {"olivettifaces.mat": good}, False)
    yield _release("olivetti", "packed", {"olivettifaces.mat": _matlab(True, faces=faces)}, False)
    yield _release(
        "olivetti",
        "gzip",
        {"olivettifaces.mat": lambda path: path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(good))},
        False,
    )
    for label, content in contents.items():
        yield _release("olivetti", label, {"olivettifaces.mat": content}, True)
    for label, start in _mutations(good[:300]):
        yield _release("olivetti", label, {"olivettifaces.mat": start + good[300:]}, False)


def _tar(*members: tuple[tarfile.TarInfo | str, bytes], end: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return bz2.compress(stream.getvalue() + end)


def _molecules() -> Iterator[Case]:
    link = tarfile.TarInfo("1.xyz")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    text = METHANE.encode()
    draw = np.random.default_rng(0)
    several = [(f"{number}.xyz", molecule(number, draw).encode()) for number in range(20)]
    contents: dict[str, bytes] = {
        "empty": b"", "garbage": b"x" * 1000, "no members": _tar(), "one molecule": _tar(several[0]),
        "link": _tar(*several, (link, b"")), "outside": _tar(*several, ("../1.xyz", text)),
        "not utf-8": _tar(*several, ("x.xyz", b"\xff\xfe")), "long": _tar(("x.xyz", bytes(10**5))),
        "twice": _tar(*several, several[0]), "behind the end": _tar(*several, end=b"x" * 1000),
        "cut": _tar(*several)[:-30], "nan": _tar(*several, ("x.xyz", text.replace(b"-0.5408", b"nan"))),
        "large": _tar(*several, ("x.xyz", text.replace(b"-0.5408", b"1e99"))),
        "atoms": _tar(*several, ("x.xyz", text.replace(b"5\n", b"6000\n", 1) + b"H 0 0 0\n" * 6000)),
        "bomb": bz2.compress(bytes(10**9)),
    }  # fmt: skip
    archive = "dsgdb9nsd.xyz.tar.bz2"
    yield _release("qm9", "good", {archive: _tar(*several)}, False)
    for label, content in contents.items():
        yield _release("qm9", label, {archive: content}, True)
    lists = {"garbage": b"\xff" * 1000, "digits": b"9" * 5000, "lines": b"\n" * 10**6, "other digits": "² ٣\n".encode()}
    for label, content in lists.items():
        yield _release("qm9", f"list {label}", {"uncharacterized.txt": content}, False)
    for label, content in _mutations(_tar(*several)):
        yield _release("qm9", label, {archive: content}, False)
