"""Matrices out of MATLAB 5 files, read within bounds: nothing is unpacked or made that was not checked before.

A file is a header and a row of elements. An element has a tag, which says of what kind it is and how many bytes it has,
and those bytes, up to the next multiple of eight. A matrix is an element made of elements: its class, its shape, its
name, its numbers. It may be packed by zlib as a whole. Numbers are kept in the smallest type that holds them.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = 128
ORDERS = {b"IM": "<", b"MI": ">"}
"""By the last two bytes of the header."""
MATRIX, PACKED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of the numbers in an element, by its kind."""
CLASSES = range(6, 16)
"""Of matrices of numbers, among those of cells, structures, text and what else there is."""
COMPLEX = 0x800
NOTHING = 0, memoryview(b"")
"""An element of no kind."""


def read_matrix(content: bytes, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read the matrix of this name in a file.

    Args:
        content: of the file.
        shape: which the matrix must have; no more is unpacked than it needs.

    Raises:
        ValueError: there is none, or the file is damaged or of another version.
    """
    order = ORDERS.get(content[HEADER - 2 : HEADER])
    if order is None or not content.startswith(b"MATLAB 5.0"):
        raise ValueError("it is no MATLAB 5 file")
    try:
        for kind, body in _elements(memoryview(content)[HEADER:], order):
            if kind == PACKED:
                kind, body = _unpacked(body, order, name, HEADER + 8 * math.prod(shape))
            if kind == MATRIX and _name(body, order) == name:
                return _matrix(body, order, shape)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"it is damaged: {error}") from None
    raise ValueError(f"it has no matrix {name}")


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield kind and bytes of each element; the last may be cut short."""
    while content:
        kind, size = struct.unpack(f"{order}II", content[:8])
        if kind >> 16:  # a short one, whose bytes are in the tag
            yield kind & 0xFFFF, content[4 : 4 + (kind >> 16)][:4]
            content = content[8:]
        else:
            yield kind, content[8 : 8 + size]
            content = content[8 + size + (-size % 8 if kind != PACKED else 0) :]


def _unpacked(body: memoryview, order: str, name: str, limit: int) -> tuple[int, memoryview]:
    """Unpack an element within another, up to a limit; only the start of one that has another name."""
    machine = zlib.decompressobj()
    start = machine.decompress(body, 4 * HEADER)
    kind, inner = next(_elements(memoryview(start), order), NOTHING)
    if kind != MATRIX or _name(inner, order) != name:
        return NOTHING
    return kind, memoryview(start[8:] + machine.decompress(machine.unconsumed_tail, limit))


def _name(body: memoryview, order: str) -> str:
    """Read the name of a matrix, its third element."""
    _, name = next(islice(_elements(body, order), 2, None), NOTHING)
    return bytes(name).decode("latin1")


def _matrix(body: memoryview, order: str, shape: tuple[int, ...]) -> NDArray[Any]:
    parts = list(islice(_elements(body, order), 4))
    if len(parts) < 4:
        raise ValueError("the matrix is cut short")
    (_, flags), (_, axes), _, (kind, numbers) = parts
    (word,) = struct.unpack(f"{order}I", flags[:4])
    if word & 0xFF not in CLASSES or word & COMPLEX or kind not in NUMBERS:
        raise ValueError("the matrix is not of real numbers")
    if axes != struct.pack(f"{order}{len(shape)}i", *shape):
        raise ValueError(f"the matrix has another shape than {shape}")
    dtype = np.dtype(NUMBERS[kind]).newbyteorder("<" if order == "<" else ">")
    if len(numbers) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the matrix has {len(numbers)} bytes of numbers, which do not fill {shape}")
    return np.frombuffer(numbers, dtype).reshape(shape, order="F")
