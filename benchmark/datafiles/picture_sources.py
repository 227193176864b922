"""Pictures that can be decoded: files of their own, or what another package gives."""

import hashlib
import json
import selectors
import subprocess
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import IO, Any

import numpy as np
from PIL import Image

from invbench.datafiles.checksums import stamp
from invbench.datafiles.decoding import PENDING, PIXELS, decode, squeezed
from invbench.errors import UserError, brief
from invbench.system.threads import available_cores

CHUNK = 64
"""Pictures that a process or thread decodes at a time."""
Shape = tuple[int, int, int, int]
"""Pictures, channels, rows, columns."""
Answer = dict[str, Any]
"""About a chunk: its number `chunk`, the `sha256` of each picture, and which are `damaged`, and how."""


class PictureSource(ABC):
    """Pictures that can be decoded.

    Args:
        paths: their files, where each has one.
    """

    paths: Sequence[Path] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of pictures."""

    @abstractmethod
    def name(self, number: int) -> str:
        """Return the name of a picture, for messages."""

    @abstractmethod
    def identity(self) -> Iterable[str]:
        """Yield texts that are equal where the pictures are."""

    @abstractmethod
    def decoded(self, folder: Path, chunks: Sequence[int], shape: Shape) -> Generator[Answer]:
        """Decode chunks into the folder's file of pixels. Yields what is known of each as soon as it is decoded."""


@dataclass(frozen=True)
class PictureFiles(PictureSource):
    """Pictures in files of their own, decoded by a process for each core."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, number: int) -> str:
        return str(self.paths[number])

    def identity(self) -> Iterator[str]:
        """Yield each file's path, size and time of change. Raises UserError for a file that is not there."""
        for path in self.paths:
            try:
                yield stamp(path)
            except OSError as error:
                raise UserError(f"the picture {path} cannot be read: {error.strerror}") from None

    def decoded(self, folder: Path, chunks: Sequence[int], shape: Shape) -> Generator[Answer]:
        paths = [str(path) for path in self.paths]
        pending = {"paths": paths, "numbers": chunks, "chunk": CHUNK, "size": shape[2], "channels": shape[1]}
        (folder / PENDING).write_text(json.dumps(pending), "utf-8")
        for line in _lines_of_workers(folder, len(chunks)):
            answer = json.loads(line)
            if "error" in answer:
                raise OSError(0, answer["error"])
            if "unreadable" in answer:
                raise UserError(f"the picture {answer['unreadable']}; the same command goes on once it can be read")
            yield answer


@dataclass(frozen=True)
class PictureItems(PictureSource):
    """Pictures that another package gives one by one, decoded by a thread for each core.

    They are read one at a time, since few datasets can be asked by several threads at once.

    Args:
        count: how many there are.
        read: returns a picture, opened or as the content of its file, by its number.
        identified_by: texts that are equal where the pictures are.
        title: of the collection, for messages.
    """

    count: int
    read: Callable[[int], Image.Image | bytes]
    identified_by: tuple[str, ...]
    title: str
    one_at_a_time: Lock = field(default_factory=Lock)

    def __len__(self) -> int:
        return self.count

    def name(self, number: int) -> str:
        return f"number {number} of {self.title}"

    def identity(self) -> tuple[str, ...]:
        return self.identified_by

    def decoded(self, folder: Path, chunks: Sequence[int], shape: Shape) -> Generator[Answer]:
        with warnings.catch_warnings(), ThreadPoolExecutor(available_cores(), "pictures") as executor:
            warnings.simplefilter("ignore")  # of odd but readable metadata; a thread cannot ignore them by itself
            stop = Event()
            try:
                jobs = [executor.submit(self._chunk, folder, chunk, shape, stop) for chunk in chunks]
                for done in as_completed(jobs):
                    yield done.result()
            finally:
                stop.set()
                executor.shutdown(cancel_futures=True)

    def _chunk(self, folder: Path, chunk: int, shape: Shape, stop: Event) -> Answer:
        """Decode a chunk into the folder's file of pixels.

        Raises:
            UserError: a picture cannot be read, which may be otherwise later.
            InterruptedError: it was to stop.
        """
        count, channels, size, _ = shape
        numbers = range(chunk * CHUNK, min((chunk + 1) * CHUNK, count))
        pixels = np.zeros((len(numbers), channels, size, size), np.uint8)
        damaged = []
        for i, number in enumerate(numbers):
            if stop.is_set():
                raise InterruptedError
            try:
                with self.one_at_a_time:
                    picture = self.read(number)
                decoder: Any = decode if isinstance(picture, bytes) else squeezed
                pixels[i] = decoder(picture, size, channels)
            except (Exception, SystemExit) as error:  # of the other package, and of Pillow on damaged files
                why = brief(" ".join(str(error).split())) or type(error).__name__
                if isinstance(error, MemoryError | UserError) or (isinstance(error, OSError) and error.errno):
                    raise UserError(f"picture {self.name(number)}: {why}; the same command goes on") from None
                damaged.append((i, why))
        with (folder / PIXELS).open("r+b") as file:  # no map, which a full disk would turn into a fault of the process
            file.seek(numbers[0] * channels * size * size)
            file.write(pixels.data)
        return {"chunk": chunk, "sha256": [hashlib.sha256(one.data).hexdigest() for one in pixels], "damaged": damaged}


def _lines_of_workers(folder: Path, chunks: int) -> Iterator[str]:
    """Decode in a process for each core. Yields the line about each chunk as soon as it is done."""
    count = min(chunks, available_cores())
    command = [sys.executable, "-m", "invbench.datafiles.decoding", str(folder)]
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for first in range(count):
            arguments = [*command, str(first), str(count)]
            worker = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, encoding="utf-8")
            stack.callback(_end, worker)
            selector.register(worker.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        while selector.get_map():
            for key, _ in selector.select():
                pipe: IO[str] = key.fileobj  # type: ignore[assignment]
                if line := pipe.readline():
                    yield line
                else:
                    selector.unregister(pipe)


def _end(worker: "subprocess.Popen[str]") -> None:
    worker.kill()
    worker.wait()
    if worker.stdout:
        worker.stdout.close()
