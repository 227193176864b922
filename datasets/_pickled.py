"""Pickles read as data: built-in values and arrays of numbers; no name in them is ever looked up, nothing is called.

The opcodes of a pickle are a program. This runs the few that lists, dictionaries, strings, integers and numpy's arrays
consist of, under protocols 2 to 4, and refuses all others. What is built is in proportion to the file: an array is a
view of bytes that are there, and its shape must account for all of them.
"""

import math
import pickletools
import re
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

RECONSTRUCT, NDARRAY, DTYPE, ENCODE = (
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
)
"""The only names that are admitted: what numpy writes for an array, and Python 3 under protocol 2 for bytes."""
NUMBERS = re.compile(r"[biu]1|[iuf][248]")
"""Types of which arrays are built. No number is a pointer, whatever its bytes."""
MAX_STEPS, MAX_AXES = 500_000, 8
"""Most instructions, of which an official file has about 50,000, and most axes of an array."""
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(str):
    """One of the four names, which no string in the pickle can pass for."""


class Numbers:
    """The type of an array's numbers."""

    def __init__(self, name: object, *_: object) -> None:
        if not NUMBERS.fullmatch(_text(name)):
            raise ValueError("an array is not of numbers")
        self.dtype = np.dtype(_text(name))

    def build(self, _: object, order: object, *__: object) -> None:
        """Take in the state, of which the order of bytes is needed."""
        self.dtype = self.dtype.newbyteorder(cast(Any, _text(order)))


class Array:
    """An array, empty until its state comes."""

    value: NDArray[Any] = np.empty(0)

    def build(self, _: object, shape: tuple[int, ...], kind: object, by_columns: object, content: object) -> None:
        """Take in the state: shape, type, order of the axes, and the numbers' bytes."""
        if not isinstance(kind, Numbers) or not isinstance(content, bytes) or len(shape) > MAX_AXES:
            raise ValueError("an array has no type, no bytes or too many axes")
        if min(shape, default=0) < 0 or math.prod(shape) * kind.dtype.itemsize != len(content):
            raise ValueError(f"an array of {len(content)} bytes is said to have another shape")
        self.value = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if by_columns else "C")


class _Machine:
    """Stack, marks and memo of a pickle that has so many bytes."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._left = size

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "SHORT_BINSTRING" | "BINSTRING":  # bytes, as Python 2 had them
                stack.append(argument.encode("latin1"))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "APPEND":
                list.append(stack[-2], stack.pop())
            case "APPENDS":
                items = self._since_mark()
                list.extend(stack[-1], items)
            case "SETITEM" | "SETITEMS":
                self._set(self._popped(2) if name == "SETITEM" else self._since_mark())
            case "GLOBAL":
                stack.append(_admitted(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack.append(_admitted(".".join(self._popped(2))))
            case "REDUCE":
                stack.append(self._made(*self._popped(2)))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], Array | Numbers) or not isinstance(state, tuple):
                    raise TypeError
                stack[-1].build(*state)
            case _ if name in TUPLES:
                stack.append(tuple(self._popped(TUPLES[name])))
            case _ if name in LITERALS:
                stack.append(argument)
            case _ if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case _:
                raise ValueError(f"it has the instruction {name}")

    def _popped(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _set(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes):  # to hash a tuple of tuples of ... could overflow the C stack
                raise TypeError
            dict.__setitem__(self.stack[-1], key, value)

    def _made(self, name: object, arguments: object) -> Any:
        """Return what the call of a name gives."""
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise TypeError
        if name == RECONSTRUCT:
            return Array()
        if name == DTYPE:
            return Numbers(*arguments)
        if name == ENCODE:
            text, _ = arguments
            self._left -= len(text)  # a string that is encoded again and again would fill the memory
            if self._left >= 0:
                return str.encode(text, "latin1")
        raise ValueError(f"it calls {name} where no array needs it")


def _admitted(name: str) -> _Name:
    name = name.replace("numpy.core.", "numpy._core.")  # as it was before numpy 2
    if name not in (RECONSTRUCT, NDARRAY, DTYPE, ENCODE):
        raise ValueError(f"it names {name[:80]}")
    return _Name(name)


def _text(value: object) -> str:
    if not isinstance(value, str | bytes):
        raise TypeError
    return value if isinstance(value, str) else value.decode("latin1")


def read_pickle(content: bytes) -> Any:
    """Read what a pickle holds.

    Raises:
        ValueError: it is damaged, or holds something else than numbers, strings, lists, dictionaries and arrays.
    """
    machine = _Machine(len(content))
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if number > MAX_STEPS:
            raise ValueError(f"it has more than {MAX_STEPS} instructions")
        try:
            if opcode.name == "STOP":
                return machine.stack[-1]
            machine.step(opcode.name, argument)
        except (IndexError, KeyError, TypeError):  # what the instruction needs is not on the stack or in the memo
            raise ValueError(f"its instruction {opcode.name} has nothing to work on") from None
    return None
