"""Decode pictures to bytes of one size.

`python -m invbench.datafiles.decoding FOLDER FIRST EVERY` is a process of `invbench.datafiles.picture_cache`: of the
chunks that the folder's `pending.json` lists it decodes every EVERY-th from the FIRST on, writes their pixels into the
folder's file, and prints a line of JSON about each.
"""

import hashlib
import io
import json
import os
import signal
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_BYTES = 1 << 29
"""Most bytes of a picture's file."""
MODES = {1: "L", 3: "RGB"}
"""Modes of Pillow by the number of channels."""
PENDING, PIXELS = "pending.json", "pixels.bin"
SIXTEEN_BITS = 257
"""What a 16-bit number is divided by for 8 bits, so that 65,535 becomes 255."""


def decode(content: bytes, size: int, channels: int) -> NDArray[np.uint8]:
    """Decode a picture to pixels (channels, size, size), squeezed to a square as torchvision's `Resize` does it.

    Of several frames the first is taken. Transparency is dropped, 16 bits are rounded to 8.

    Raises:
        ValueError: it is damaged, no picture, or has more pixels than Pillow decodes (179 million).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd but readable metadata
        try:
            with Image.open(io.BytesIO(content)) as image:
                return squeezed(image, size, channels)
        except ValueError:
            raise
        except Exception as error:  # Pillow raises all sorts of them on damaged files
            raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def squeezed(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """Squeeze an opened picture as `decode` does. Raises ValueError, and whatever Pillow raises on damaged files."""
    resized = _in_mode(image, MODES[channels]).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8).reshape(size, size, channels).transpose(2, 0, 1)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        eight_bits = np.clip(np.asarray(image).astype(np.float64) / SIXTEEN_BITS, 0, 255).round().astype(np.uint8)
        return Image.fromarray(eight_bits).convert(mode)
    if image.mode == "F":
        raise ValueError("its pixels are real numbers; save it with 8 or 16 bits")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        return image.convert("RGBA").convert(mode)
    return image.convert(mode)


def decode_files(
    paths: list[str], size: int, channels: int
) -> tuple[NDArray[np.uint8], list[str], list[tuple[int, str]]]:
    """Decode files. Returns pixels (N, channels, size, size), the sha256 of each, and which are damaged, and how.

    Raises:
        OSError: a file cannot be read, which may be otherwise later.
    """
    pixels = np.zeros((len(paths), channels, size, size), np.uint8)
    sums, damaged = [], []
    for i, path in enumerate(paths):
        content = b""
        try:
            if not stat.S_ISREG(Path(path).stat().st_mode):
                raise ValueError("it is no regular file")
            with Path(path).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"its file has more than {MAX_BYTES} bytes")
            pixels[i] = decode(content, size, channels)
        except ValueError as error:
            damaged.append((i, str(error)))
        sums.append(hashlib.sha256(content).hexdigest())
    return pixels, sums, damaged


def work(folder: Path, first: int, every: int) -> None:
    """Decode a process's share of the chunks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    pending: dict[str, Any] = json.loads((folder / PENDING).read_text("utf-8"))
    size, channels, length = pending["size"], pending["channels"], pending["chunk"]
    with (folder / PIXELS).open("r+b") as file:
        for number in pending["numbers"][first::every]:
            paths = pending["paths"][number * length : (number + 1) * length]
            try:
                pixels, sums, damaged = decode_files(paths, size, channels)
            except OSError as error:
                _answer({"unreadable": f"{error.filename}: {error.strerror}"})
                return
            try:
                file.seek(number * length * channels * size * size)
                file.write(pixels.data)
                file.flush()
            except OSError as error:
                _answer({"error": error.strerror})
                return
            _answer({"chunk": number, "sha256": sums, "damaged": damaged})


def _answer(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except BrokenPipeError:  # the process that reads is gone
        os._exit(1)
