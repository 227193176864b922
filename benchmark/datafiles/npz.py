"""Files of arrays (.npz), read without pickles and without unpacking more than was checked before."""

import io
import math
import re
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invbench.datafiles.checksums import is_regular

MAGIC = b"\x93NUMPY\x01\x00"
HEADER = re.compile(
    rb"\{'descr': '(\|[biu]1|[<>][iuf][248]|[<>]c(?:8|16)|[<>]U[1-9]\d{0,5})', "
    rb"'fortran_order': (?:True|False), 'shape': \(((?:\d{1,10}, ?){0,16}(?:\d{1,10})?)\), \} *\n"
)
"""Pattern of the header that numpy writes for an array of numbers or text: its type and its shape."""
PACKED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""Compressions that numpy writes; others unpack more than they are asked for."""


def read_npz(path: Path, limit: int, names: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """Read the arrays in a file, by name.

    Args:
        limit: bytes that the file may have, and that they may have together.
        names: names of the arrays to read; all by default.

    Raises:
        ValueError: the file is damaged, holds pickles, or is larger, or one of these names is not there.
        OSError: it cannot be read.
    """
    if not is_regular(path):
        raise ValueError("it is no file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            selected = {name: members[name] for name in names or members}
            if any(member.compress_type not in PACKED or member.flag_bits & 1 for member in selected.values()):
                raise ValueError("it is encrypted, or packed as numpy does not")
            if sum(member.file_size for member in selected.values()) > limit:
                raise ValueError(f"it unpacks to more than {limit} bytes")
            return {name: _array(archive.read(member)) for name, member in selected.items()}
    except KeyError as error:
        raise ValueError(f"it has no array {error}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"it is damaged: {error}") from None


def _array(content: bytes) -> NDArray[Any]:
    """Parse the content of a .npy file."""
    start = len(MAGIC) + 2
    header = content[start : start + int.from_bytes(content[len(MAGIC) : start], "little")]
    match = HEADER.fullmatch(header)
    if match is None or not content.startswith(MAGIC):
        raise ValueError("it holds something else than arrays of numbers or text")
    size = np.dtype(match[1].decode()).itemsize * math.prod(int(axis) for axis in match[2].split(b",") if axis.strip())
    if size != len(content) - start - len(header):
        raise ValueError(f"an array promises {size} bytes where {len(content) - start - len(header)} are")
    array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array
