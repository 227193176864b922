"""The idx format of the MNIST files."""

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from invbench.datafiles.checksums import opened, verify
from invbench.datafiles.release import SourceFile
from invbench.errors import UserError

UNSIGNED_BYTE = 8
MAX_CONTENT = 1 << 28
"""Most bytes of examples that a header may promise: five times what the longest official file has."""


def read_idx(path: Path, source: SourceFile, shape: tuple[int, ...] = ()) -> NDArray[np.uint8]:
    """Read the examples (N, *shape) in an idx file of bytes, plain or gzipped.

    A file as long as the official one must also have its checksum. A consistent file of another length is accepted:
    it is a part of the data, or somebody's own.

    Raises:
        UserError: the file is truncated, damaged, no idx file of bytes, or holds something else or nothing.
    """
    magic = bytes([0, 0, UNSIGNED_BYTE, 1 + len(shape)])
    header = len(magic) + 4 * magic[3]
    with opened(path) as file:
        content = file.read(header)
        if content[:4] != magic:
            raise UserError(f"{path} is not an idx file of bytes in {magic[3]} dimensions; fetch it again")
        if len(content) < header:
            raise UserError(f"{path} is truncated inside its header; delete it and fetch it again")
        count, *rest = struct.unpack(f">{magic[3]}I", content[4:])
        if tuple(rest) != shape or not 0 < count * math.prod(shape) <= MAX_CONTENT:
            said = f"{path} promises {count} examples of shape {tuple(rest)}"
            raise UserError(f"{said}; it must be some, and not too many, of shape {shape}; fetch it again")
        expected = header + count * math.prod(shape)
        content += file.read(expected - header + 1)
    if source.sha256 and source.size in (len(content), expected):
        verify(content, source.sha256, path)
    if len(content) != expected:
        length = "more" if len(content) > expected else len(content)
        raise UserError(f"{path} has {length} bytes where its header promises {expected}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(count, *shape)
