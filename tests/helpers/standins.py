"""Small files in the official formats, in the places of the official files."""

import bz2
import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t-40.47893\t-40.476062\t\
-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 2.765748*^-4\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""
"""The first file of QM9."""


def write_all(folder: Path) -> Path:
    """Write a data folder with a stand-in for every release."""
    write_mnist(folder / "MNIST" / "raw")
    write_cifar(folder / "cifar-10-batches-bin")
    write_faces(folder / "olivettifaces.mat")
    write_qm9(folder, 60)
    return folder


def write_mnist(folder: Path) -> Path:
    """Write 60 training and 20 test images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 60), ("t10k", 20)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", rng.integers(0, 10, count).astype(np.uint8))
    return folder


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write bytes in the idx format, gzipped where the name says so."""
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_cifar(folder: Path, train: int = 40, test: int = 20, batches: int = 1) -> Path:
    """Write so many images a batch, in the binary format."""
    folder.mkdir(parents=True)
    names = [*((f"data_batch_{i + 1}.bin", train) for i in range(batches)), ("test_batch.bin", test)]
    for seed, (name, count) in enumerate(names):
        rng = np.random.default_rng(seed)
        records = rng.integers(0, 256, (count, 3073)).astype(np.uint8)
        records[:, 0] = rng.permutation(np.arange(count) % 10)
        records.tofile(folder / name)
    return folder


def write_faces(path: Path) -> Path:
    """Write 400 noisy faces as the Olivetti file; a bright bar near the top left of each shows what is up."""
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 100, (400, 64, 64)).astype(np.uint8)
    faces[:, 12:20, 20:32] = 255
    savemat(path, {"faces": faces.transpose(0, 2, 1).reshape(400, -1).T})
    return path


def write_qm9(folder: Path, count: int, excluded: tuple[int, ...] = ()) -> Path:
    """Write methane, then made-up molecules of different sizes, into the official archive."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as archive:
        for index in range(1, count + 1):
            add_text(archive, f"dsgdb9nsd_{index:06d}.xyz", METHANE if index == 1 else molecule(index, rng))
    if excluded:
        lines = ["=" * 20, "  Index   SMILES", "=" * 20, *(f"{index:8d}   C   C" for index in excluded), "=" * 20]
        (folder / "uncharacterized.txt").write_text("\n".join(lines) + "\n")
    return folder / "dsgdb9nsd.xyz.tar.bz2"


def molecule(index: int, rng: np.random.Generator) -> str:
    """Return a file like the official ones, of 6 to 9 heavy atoms and three hydrogens."""
    symbols = [*rng.choice(["C", "N", "O", "F"], 6 + index % 4), "H", "H", "H"]
    values = "\t".join(f"{value:.5f}" for value in rng.normal(size=15))
    rows = ["\t".join([symbol, *(f"{x:.6f}" for x in rng.normal(size=3)), "0.0"]) for symbol in symbols]
    return "\n".join([str(len(symbols)), f"gdb {index}\t{values}\t", *rows, "", "", ""])


def add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    """Put a text file into an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(text.encode())
    archive.addfile(member, io.BytesIO(text.encode()))


def archive_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """Write a tar.bz2 of these members, whatever they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(bz2.compress(buffer.getvalue()))
    return path
