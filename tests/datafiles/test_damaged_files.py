"""Files that are damaged, or made to do harm: one line says so, and nothing is unpacked, run or waited for."""

import bz2
import gzip
import io
import os
import pickle
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from allocation import MEBIBYTE, peak
from conftest import Bench
from fuzzing import damaged
from numpy.typing import NDArray
from pyarrow import parquet
from scipy.io import savemat
from standins import METHANE, add_text, write_mnist, write_qm9

from invbench.core.trainer import TrainerConfig
from invbench.datafiles.cache import cached_arrays
from invbench.datafiles.checksums import digest, read
from invbench.datafiles.npz import read_npz
from invbench.datafiles.release import SourceFile
from invbench.datasets import _tables, qm9
from invbench.datasets._cifar import read_batch
from invbench.datasets._idx import read_idx
from invbench.datasets._matlab import read_matrix
from invbench.datasets._pickled import Array, read_pickle
from invbench.datasets.mario_iggy import MarioIggy
from invbench.datasets.olivetti import Olivetti
from invbench.datasets.qm9 import QM9, parse_xyz
from invbench.datasets.rotmnist import RotMNIST
from invbench.datasets.tabular_nuisance import TabularNuisance
from invbench.errors import UserError
from invbench.seeding import stream
from invbench.training.sampling import Sampler

SEED = stream(0, "data")


def each_damage(content: bytes, read: Callable[[bytes], object], count: int = 400) -> None:
    """Check that reading damaged content succeeds or raises a ValueError of one line."""
    for seed in range(count):
        try:
            read(damaged(content, random.Random(seed)))  # noqa: S311
        except ValueError as error:
            assert len(str(error)) < 300


# --- gzip and idx ----------------------------------------------------------------------------------------------------


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(40 * gzip.compress(bytes(MEBIBYTE)))
    assert peak(lambda: read(path, MEBIBYTE), "has more than 1048576 bytes") < 8 * MEBIBYTE
    assert peak(lambda: digest(path, limit=MEBIBYTE), "has more than 1048576 bytes") < 8 * MEBIBYTE
    assert len(read(path, 40 * MEBIBYTE)) == 40 * MEBIBYTE, "as long as the limit is not too long"
    assert peak(lambda: read_idx(path, SourceFile("x")), "is not an idx file") < 2 * MEBIBYTE
    path.write_bytes(gzip.compress(b"\0\0\x08\1" + struct.pack(">I", 10)) + 40 * gzip.compress(bytes(MEBIBYTE)))
    assert peak(lambda: read_idx(path, SourceFile("x")), "has more bytes where its header promises 18") < 2 * MEBIBYTE


def test_verifying_a_bomb(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "data/MNIST/raw")
    monkeypatch.setenv("INVBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("invbench.datafiles.checksums.MAX_UNPACKED", MEBIBYTE)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(60 * gzip.compress(bytes(MEBIBYTE)))
    status, out, err = bench("data", "verify", "mnist")
    assert status == 2
    assert "train-images-idx3-ubyte.gz is damaged" in out
    assert "has more than 47040016 bytes" in out, "no more than the official file"
    assert "4 files differ" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x", "not an idx file"),
        (b"\0\0\x08\0x", "not an idx file"),
        (b"\0\0\x0d\3" + struct.pack(">3I", 1, 28, 28) + bytes(784 * 4), "not an idx file"),
        (b"\0\0\x08\3" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), "promises 4294967295 examples"),
        (b"\0\0\x08\3" + struct.pack(">3I", 2**31, 28, 28), "promises 2147483648 examples"),
        (b"\0\0\x08\3" + struct.pack(">3I", 0, 28, 28), "promises 0 examples"),
        (b"\0\0\x08\3" + struct.pack(">3I", 1, 14, 56) + bytes(784), r"of shape \(14, 56\)"),
        (b"\0\0\x08\3" + struct.pack(">3I", 1, 28, 28) + bytes(785), "has more bytes where its header promises 800"),
    ],
)
def test_odd_idx_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(path, SourceFile("images"), (28, 28))


def test_gzip_archives_of_two_members_and_with_something_behind(tmp_path: Path) -> None:
    content = b"\0\0\x08\1" + struct.pack(">I", 6) + bytes(range(6))
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(content[:9]) + gzip.compress(content[9:]))
    assert read_idx(path, SourceFile("labels")).tolist() == list(range(6))
    path.write_bytes(gzip.compress(content) + b"behind")
    with pytest.raises(UserError, match="is a damaged gzip file"):
        read_idx(path, SourceFile("labels"))


def test_a_label_that_is_no_digit(mnist_folder: Path) -> None:
    (mnist_folder / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1" + struct.pack(">I", 60) + b"\xc8" * 60)
    with pytest.raises(UserError, match="must be 0 to 9"):
        RotMNIST().load(SEED)


def test_pipes_and_odd_names_are_no_files(mnist_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mnist_folder / "train-labels-idx1-ubyte"
    path.unlink()
    os.mkfifo(path)
    assert SourceFile("train-labels-idx1-ubyte").within(mnist_folder) is None
    with pytest.raises(UserError, match="is a folder, a pipe or a device"):
        read(path)
    assert SourceFile("x" * 5000).within(mnist_folder) is None
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        read(mnist_folder / ("x" * 5000))


# --- pickles ---------------------------------------------------------------------------------------------------------


class Call:
    """Pickled as the call of a function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def python2(number: NDArray[np.uint8], labels: list[int]) -> bytes:
    """Return an official batch, opcode by opcode as Python 2 and its numpy wrote it."""
    rows, columns = number.shape
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(",
            numbers,
            b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09",
            b"(K\x01M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86",
            b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<I", number.size) + number.tobytes() + b"tbU\tfilenamesq\x0c]q\x0dU\x05a.pngau.",
        ]
    )


def test_official_python_batches(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3072)).astype(np.uint8)
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2(images, [7, 0, 9]))
    actual, labels = read_batch(path)
    np.testing.assert_array_equal(actual.reshape(3, -1), images)
    assert labels.tolist() == [7, 0, 9]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", ["u1", ">i2", "<f8", "?"])
def test_arrays_and_values_are_read(protocol: int, kind: str) -> None:
    value = {b"a": np.arange(6).astype(kind).reshape(2, 3), "b": [1, -5, 300, True, None, "é", b"\xff"], b"c": (1, ())}
    actual = read_pickle(pickle.dumps(value, protocol))
    assert isinstance(actual[b"a"], Array)
    np.testing.assert_array_equal(actual[b"a"].value, value[b"a"])
    assert {key: actual[key] for key in ("b", b"c")} == {key: value[key] for key in ("b", b"c")}


def batch(data: object, labels: object) -> bytes:
    return pickle.dumps({b"data": data, b"labels": labels}, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (batch(np.zeros((4, 3072), np.uint8), Call(np.ndarray, (4,), "O", b"A" * 32)), "it calls numpy.ndarray"),
        (batch(Call(np.ndarray, (10**12,), "u1"), [1]), "it calls numpy.ndarray|instruction LONG1"),
        (batch(Call(os.mkdir, "harmed"), [1]), "it names posix.mkdir"),
        (batch(np.array([None] * 4), [1] * 4), "an array is not of numbers"),
        (batch(np.zeros((4, 3072), np.uint8), [[1]] * 4), "labels must be 0 to 9"),
        (batch(np.zeros((4, 3072), np.uint8), [1, 2, 3, 300]), "labels must be 0 to 9"),
        (batch(np.zeros((4, 3072), np.uint8), "abcd"), "no list of labels"),
        (batch(np.zeros((4, 3072), np.uint8), [1] * 4).replace(b"M\x00\x0c", b"M\x01\x0c"), "have another shape"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "LONG_BINPUT has nothing"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f\0.", "is no python batch"),
        (b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.", "SETITEM has nothing"),
        (b"\x80\x02" + b"}" * 600_000 + b".", "more than 500000 instructions"),
        (b"(" * 100_000, "is no python batch"),
        (b"\x80\x02K\x01Q.", "instruction BINPERSID"),
    ],
)
def test_pickles_that_do_harm(content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "test_batch"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_batch(path)
    assert not (tmp_path / "harmed").exists()


def test_a_string_is_not_encoded_again_and_again() -> None:
    text = b"X" + struct.pack("<I", 100_000) + b"x" * 100_000
    one = b"\x80\x02c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02\x86q\x03R"
    assert read_pickle(one + b".") == b"x" * 100_000
    assert peak(lambda: read_pickle(one + b"h\x00h\x03R" * 1000 + b"."), "it calls _codecs.encode") < 4 * MEBIBYTE


def test_damaged_pickles() -> None:
    each_damage(python2(np.zeros((1, 100), np.uint8), [1]), read_pickle, 2000)


def test_a_gzipped_binary_batch(tmp_path: Path) -> None:
    path = tmp_path / "test_batch.bin.gz"
    path.write_bytes(gzip.compress(bytes([7, *bytes(3072)])))
    assert read_batch(path)[1].tolist() == [7]


# --- arrays ----------------------------------------------------------------------------------------------------------

FIGURE = np.zeros((3, 32, 32), np.float32)


def npz(mario: NDArray[Any], save: Callable[..., None] = np.savez) -> bytes:
    stream = io.BytesIO()
    save(stream, mario=mario, iggy=FIGURE)
    return stream.getvalue()


def promising(shape: str, kind: str = "'<f4'", content: bytes = b"", packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a file of an array with this header."""
    head = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        archive.writestr("mario.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content)
        archive.writestr("iggy.npy", b"")
    return stream.getvalue()


def flagged(content: bytes, local: int, central: int, value: int) -> bytes:
    """Return the zip archive with one byte changed in the first header of each kind."""
    data = bytearray(content)
    data[data.find(b"PK\x03\x04") + local] = value
    for _ in range(2):
        data[data.find(b"PK\x01\x02") + central] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (promising("(1000000000,)"), "promises 4000000000 bytes where 0 are"),
        (promising("(1000000000000,)"), "something else than arrays"),
        (promising("(4611686018427387904,4)"), "something else than arrays"),
        (promising("(-5,)"), "something else than arrays"),
        (promising("(1,)", "'|O'", bytes(8)), "something else than arrays"),
        (promising("(1,)", "'<f3'", b"xxx"), "something else than arrays"),
        (promising("(" * 900), "something else than arrays"),
        (promising("__import__('os').mkdir('harmed')"), "something else than arrays"),
        (promising("(1,)", content=bytes(4), packing=zipfile.ZIP_BZIP2), "encrypted, or packed as numpy does not"),
        (promising("(1,)", content=bytes(2**25)), "unpacks to more than 16777216 bytes"),
        (flagged(npz(FIGURE), 6, 8, 1), "encrypted, or packed as numpy does not"),
        (flagged(npz(FIGURE), 8, 10, 99), "encrypted, or packed as numpy does not"),
        (flagged(npz(FIGURE), 4, 6, 255), "is damaged: zip file version"),
        (npz(FIGURE)[:-100], "is damaged"),
        (npz(np.array([Call(os.mkdir, "harmed")])), "something else than arrays"),
        (npz(FIGURE + 1j), r"with values in \[0, 1\]"),
        (npz(FIGURE.astype(float) + 1e300), r"with values in \[0, 1\]"),
        (npz(FIGURE * np.nan), r"with values in \[0, 1\]"),
        (npz(np.array("x")), r"with values in \[0, 1\]"),
    ],
)
def test_figures_that_are_none(content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "figures.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        MarioIggy(sprites=str(path), train_examples=4, test_examples=4).load(SEED)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_arrays(save: Callable[..., None], tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=">i4").reshape(2, 3, order="F"),
        "text": np.array(["é", "longer"]),
        "none": np.zeros((0, 3)),
        "one": np.array(True),
    }
    save(tmp_path / "arrays.npz", **arrays)
    loaded = read_npz(tmp_path / "arrays.npz", 10_000)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
    assert read_npz(tmp_path / "arrays.npz", 10_000, ["a"]).keys() == {"a"}
    with pytest.raises(ValueError, match="it has no array 'b'"):
        read_npz(tmp_path / "arrays.npz", 10_000, ["b"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_of_arrays(save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"

    def read(content: bytes) -> object:
        path.write_bytes(content)
        return read_npz(path, 10_000)

    stream = io.BytesIO()
    save(stream, a=np.arange(5), b=np.ones(3))
    each_damage(stream.getvalue(), read)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        promising("(1000000000,)"),
        promising("(1,)", content=bytes(2**25)),
        flagged(npz(FIGURE), 6, 8, 1),
        flagged(npz(FIGURE), 8, 10, 99),
        npz(np.array([Call(os.mkdir, "harmed")])),
        None,
    ],
)
def test_prepared_data_that_are_damaged_are_made_anew(content: bytes | None, tmp_path: Path) -> None:
    """Whatever lies in their place, a pipe (None) too."""

    def make() -> dict[str, NDArray[Any]]:
        return {"a": np.arange(3)}

    cached_arrays("x", [], make)
    (path,) = (tmp_path / "cache/prepared").glob("*.npz")
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    assert cached_arrays("x", [], make)["a"].tolist() == [0, 1, 2]
    assert read_npz(path, 10_000, ["a"])["a"].tolist() == [0, 1, 2], "the cache is whole again"
    assert not Path("harmed").exists()


# --- MATLAB ----------------------------------------------------------------------------------------------------------


def matlab(packed: bool = False, **matrices: object) -> bytes:
    stream = io.BytesIO()
    savemat(stream, matrices, do_compression=packed)
    return stream.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8", ">f8"])
def test_matrices(packed: bool, kind: str) -> None:
    matrix = np.random.default_rng(0).integers(0, 100, (7, 5)).astype(kind)
    content = matlab(packed, other=np.ones((3, 3)), text="text", table={"a": 1}, faces=matrix)
    np.testing.assert_array_equal(read_matrix(content, "faces", (7, 5)), matrix)


GOOD = matlab(faces=np.zeros((7, 5)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no MATLAB 5 file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"x" * 100, "no MATLAB 5 file"),
        (struct.pack("<5i", 0, 2**30, 2**30, 0, 6) + b"faces\0", "no MATLAB 5 file"),
        (GOOD[:128], "no matrix faces"),
        (GOOD[:300], "108 bytes of numbers, which do not fill"),
        (GOOD[:128] + bytes(10**6), "no matrix faces"),
        (matlab(x=1), "no matrix faces"),
        (matlab(faces=np.zeros((5, 7))), "has another shape"),
        (matlab(faces=np.zeros((7, 5), complex)), "not of real numbers"),
        (matlab(faces="hello"), "not of real numbers"),
        (matlab(faces={"a": 1}), "not of real numbers"),
        (matlab(faces=np.array([1, "a"], dtype=object)), "cut short|not of real numbers"),
    ],
)
def test_matrices_that_are_none(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_matrix(content, "faces", (7, 5))


def test_a_packed_matrix_is_no_bomb() -> None:
    for name in ("faces", "other"):
        content = matlab(True, **{name: np.zeros((1000, 40_000), np.uint8)})
        assert len(content) < 100_000
        assert peak(lambda content=content: read_matrix(content, "faces", (7, 5)), "another shape|no matrix") < MEBIBYTE


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_matrices(packed: bool) -> None:
    content = matlab(packed, other=np.ones((3, 3)), faces=np.arange(35).reshape(7, 5))
    each_damage(content, lambda changed: read_matrix(changed, "faces", (7, 5)), 2000)


def test_faces_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVBENCH_DATA", str(tmp_path))
    path = tmp_path / "olivettifaces.mat"
    for faces in (np.full((4096, 400), np.nan), np.full((4096, 400), 256.0), np.full((4096, 400), -1.0)):
        path.write_bytes(matlab(faces=faces))
        with pytest.raises(UserError, match="pixels must be 0 to 255"):
            Olivetti(copies=1).load(SEED)
    (tmp_path / "olivettifaces.mat.gz").write_bytes(gzip.compress(matlab(faces=np.ones((4096, 400), np.uint8))))
    path.unlink()
    assert Olivetti(copies=1).load(SEED).splits["train"].x.max() <= 1 / 255 + 1e-6


# --- molecules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        METHANE.replace("-0.5408", "nan"),
        METHANE.replace("1.0858", "1e99"),
        METHANE.replace("13.21", "nan"),
        METHANE.replace("13.21", "inf"),
        METHANE.replace("5\n", "6000\n", 1) + "H 0 0 0\n" * 6000,
        METHANE.replace("5\n", f"{'9' * 5000}\n", 1),
        METHANE.replace("5\n", "0\n", 1),
        METHANE.replace("5\n", "-1\n", 1),
    ],
)
def test_molecules_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="cannot be parsed") as error:
        parse_xyz(text, "1.xyz")
    assert len(str(error.value)) < 300


def test_archives_of_molecules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVBENCH_DATA", str(tmp_path))
    path = write_qm9(tmp_path, 12)
    good = path.read_bytes()
    (tmp_path / "uncharacterized.txt").write_bytes(
        b"\xff\n" + b"9" * 5000 + "\n²\n".encode() + b"3 C C\n 4\n" + b"\n" * 10**5
    )
    assert sum(len(split) for split in QM9().load(SEED).splits.values()) == 10
    (tmp_path / "uncharacterized.txt").unlink()
    with tarfile.open(path, "w:bz2") as archive:
        for number in range(12):
            add_text(archive, f"{number}.xyz", METHANE)
        member = tarfile.TarInfo("x.xyz")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"\xff\xfe"))
    with pytest.raises(UserError, match=r"x\.xyz in the QM9 archive cannot be parsed"):
        QM9().load(SEED)
    with tarfile.open(path, "w:bz2") as archive:
        for number in range(12):
            add_text(archive, f"{number}.xyz", METHANE)
    with pytest.raises(UserError, match="training molecules with the same homo"):
        QM9().load(SEED)
    write_qm9(tmp_path, 9)
    with pytest.raises(UserError, match="holds only 9 molecules, fewer than 10"):
        QM9().load(SEED)
    monkeypatch.setattr(qm9, "MAX_MEMBERS", 5)
    path.write_bytes(good)
    with pytest.raises(UserError, match="has more than 5 members"):
        QM9().load(SEED)
    path.write_bytes(bz2.compress(bytes(10**8)))
    assert peak(lambda: QM9().load(SEED), "holds no molecules|something behind|cannot be unpacked") < 16 * MEBIBYTE


# --- tables ----------------------------------------------------------------------------------------------------------


def frame(**columns: object) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    plain = pd.DataFrame({"_label": [0, 1] * 30, "mass": draw.normal(size=60), "a": draw.normal(size=60)})
    return plain.assign(**columns)


def load(path: Path, **settings: Any) -> Any:
    return TabularNuisance(table=str(path), nuisance=("mass",), **settings).load(SEED)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (frame(_label=1), {}, "column _label is the same in all 60 rows"),
        (frame(_label=0), {}, "column _label is the same in all 60 rows"),
        (frame(mass=1.0), {"environments": "nuisance_bins"}, "mass has too few values for 8 bins"),
        (frame(mass=[1.0] + [0.0] * 59), {"environments": "nuisance_bins"}, "mass has too few values for 8 bins"),
        (frame(a=1e39), {}, "column a has values beyond 1e"),
        (frame(mass=-1e39), {}, "column mass has values beyond 1e"),
        (frame()[:0], {}, "0 rows leave nothing"),
        (frame()[:2], {}, "2 rows leave nothing"),
    ],
)
def test_tables_of_nothing_to_learn(
    table: pd.DataFrame, settings: dict[str, Any], message: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"events.{suffix}"
    getattr(table, f"to_{suffix}")(path, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, which writes an empty table
        with pytest.raises(UserError, match=message):
            load(path, **settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_label,mass,a,a\n" + "1,2,3,4\n0,1,2,3\n" * 9, "several columns named a;"),
        ("_label,_label,mass,a\n" + "1,0,2,3\n0,1,1,2\n" * 9, "several columns named _label;"),
        (",_label,mass,a\n" + "0,1,2,3\n1,0,1,2\n" * 9, "a column without a name"),
        ("_label,mass,a\n" + "1,2,3,9\n0,2,3,9\n" * 9, "cannot be read: Length of header"),
        ("_label,mass,a\n1,2,3\n1,2,3,4,5\n", "cannot be read"),
        ("_label,mass,a\n" + "1,2,\0\n0,1,2\n" * 9, "column a of the table is not numeric: row 1 has"),
        ("_label,mass,a\n" + "1,2,3\n0,1,2\n" * 9 + "1,2,x\n", "a of the table is not numeric: row 19 has 'x';"),
        (
            "_label,mass,a\n" + "yes,2,3\nno,1,2\n" * 9,
            "_label of the table is not numeric: row 1 has 'yes'; labels",
        ),
        (f"_label,mass,a\n1,2,{'9' * 400}\n" + "0,1,2\n" * 9, "column a of the table is not numeric"),
        ("\0\1\2", "cannot be read|has no column"),
        (",".join(map(str, range(10_000))) + "\n", "has no column _label; it has 0, 1, .*…$"),
    ],
)
def test_odd_csv_tables(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_csv_table_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_bytes(("_label,mass,é\n" + "1,2,3\n0,1,2\n" * 9).encode(encoding))
    with pytest.raises(UserError, match="cannot be read"):
        load(path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_only_regular_files_are_tables(make: Callable[[Path], None], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"events.{suffix}"
    make(path)
    with pytest.raises(UserError, match="is a folder, a pipe or a device"):
        load(path)
    assert TabularNuisance(table=str(path), nuisance=("mass",)).files() == ()


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:9/t.csv", "s3://bucket/t.parquet", "file:///etc/passwd.csv", "a\0.csv"]
)
def test_addresses_are_names_of_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a network location is opened"))
    with pytest.raises(UserError, match="cannot be read"):
        TabularNuisance(table=name, nuisance=("mass",)).load(SEED)
    if name.startswith("http"):
        (tmp_path / name).parent.mkdir(parents=True)
        frame().to_csv(tmp_path / name, index=False)
        assert TabularNuisance(table=name, nuisance=("mass",)).load(SEED).input_shape == (1,)


def test_names_of_files_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    frame().to_csv(tmp_path / "events.csv", index=False)
    dataset = TabularNuisance(table="~/events.csv", nuisance=("mass",))
    assert dataset.files() == (tmp_path / "events.csv",)
    assert dataset.load(SEED).input_shape == (1,)
    (tmp_path / "figures.npz").write_bytes(npz(FIGURE))
    figures = MarioIggy(sprites="~/figures.npz", train_examples=4, test_examples=4)
    assert figures.files() == (tmp_path / "figures.npz",)
    assert figures.load(SEED).input_shape == (3, 32, 32)


def columns(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table({"_label": [1, 0] * 30, "mass": [0.1, 0.2] * 30} | columns), path)
    return path


def test_types_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    for values in (
        [Decimal("1.5")] * 60,
        [None, 1] * 30,
        [True, False] * 30,
        np.ones(60, np.float16),
        [2**63 - 1] * 60,
    ):
        assert load(columns(path, a=values)).input_shape == (1,)
    assert load(columns(path, a=[None] * 60)).facts["missing_values"] == 60
    assert load(columns(path, a=[1] * 60, _note=["x"] * 60, **{"a.b": [2] * 60})).input_shape == (2,)
    for values in ([[1, 2]] * 60, [{"b": 1}] * 60, ["x"] * 60, [b"x"] * 60, pd.Categorical(["x", "y"] * 30)):
        with pytest.raises(UserError, match="column a of the table is not numeric"):
            load(columns(path, a=values))
    names = ["_label", "mass", "a", "a"]
    parquet.write_table(pa.table([pa.array([1, 0] * 30)] * 4, names=names), path)
    with pytest.raises(UserError, match="several columns named a;"):
        load(path)


@pytest.mark.parametrize(
    "notes",
    [
        b"[]",
        b"x",
        b"\xff",
        b"[" * 100_000,
        b'{"index_columns": {"a": 1}}',
        b'{"index_columns": ["nothing"], "columns": [], "column_indexes": []}',
        b'{"index_columns": [{"kind": "range"}], "columns": 3}',
    ],
)
def test_notes_of_pandas_are_not_believed(notes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    table = pa.table({"_label": [1, 0] * 30, "mass": [0.1, 0.2] * 30, "a": [0.1, 0.2] * 30})
    parquet.write_table(table.replace_schema_metadata({"pandas": notes}), path)
    assert load(path).input_shape == (1,)


def test_the_index_of_pandas_is_no_feature(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    frame(b=1).set_index("a").to_parquet(path)
    assert load(path).input_shape == (1,)


def test_bins_that_no_row_reaches(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "events.csv", index=False)
    train = load(tmp_path / "events.csv", environments="nuisance_bins", bins=100_000).splits["train"]
    with pytest.raises(UserError, match="are more than these examples reach; ask for fewer"):
        Sampler.of(train, TrainerConfig(steps=1, batch_size=None), 0)


def test_a_parquet_table_of_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "MAX_VALUES", 100)
    with pytest.raises(UserError, match="its 60 rows have more than 100 values|has more than 800 bytes"):
        load(columns(tmp_path / "events.parquet", a=[1] * 60))


def test_damaged_parquet_tables(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    content = columns(path, a=list(range(60))).read_bytes()
    for seed in range(300):
        path.write_bytes(damaged(content, random.Random(seed)))  # noqa: S311
        try:
            load(path)
        except UserError as error:
            assert len(str(error)) < 1000
