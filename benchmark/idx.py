"""The idx format of the MNIST files."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from invbench.errors import UserError
from invbench.sources import SourceFile, read, verify

UNSIGNED_BYTE = 8


def read_idx(path: Path, source: SourceFile) -> NDArray[np.uint8]:
    """The array in an idx file of bytes, plain or gzipped.

    A file as long as the official one must also have its checksum. A consistent file of another length is accepted:
    it is a part of the data, or somebody's own.

    Raises:
        UserError: the file is truncated, damaged, or no idx file of bytes.
    """
    content = read(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise UserError(f"{path} is not an idx file of bytes; delete it and fetch it again")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise UserError(f"{path} is truncated inside its header; delete it and fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if source.sha256 and source.size in (len(content), expected):
        verify(content, source.sha256, path)
    if len(content) != expected:
        raise UserError(f"{path} has {len(content)} bytes where its header promises {expected}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
