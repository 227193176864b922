"""Pictures decoded once, into a file of bytes that all runs and processes map into their memory.

The cache folder `pictures/<key>` has `pixels.bin`, bytes (N, channels, size, size), and `pictures.npz` as soon as all
are decoded. Until then `done.jsonl` has a line for each chunk of pictures that is, so that a killed preparation goes
on where it was. The key is a hash of what identifies the pictures, and of how they are decoded.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from invbench.console import announce, progress_bar
from invbench.datafiles.decoding import PENDING, PIXELS
from invbench.datafiles.npz import read_npz
from invbench.datafiles.picture_sources import CHUNK, Answer, PictureSource, Shape
from invbench.datafiles.release import CACHE_VARIABLE, cache_folder
from invbench.errors import Interrupted, UserError
from invbench.files import replacing

VERSION = "1"
"""Of the decoding; another one has other files."""
DONE, MANIFEST = "done.jsonl", "pictures.npz"
SPARE = 1 << 28
"""Bytes that a disk keeps free."""


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures.

    Args:
        pixels: of all (N, channels, size, size), mapped into memory.
        digests: sha256 of each file and of how it was decoded, as integers (N, 4).
        damaged: why a picture could not be decoded, by its number.
    """

    pixels: NDArray[np.uint8]
    digests: NDArray[np.int64]
    damaged: dict[int, str]


def decoded_pictures(source: PictureSource, size: int, channels: int) -> Pictures:
    """Decode pictures into the cache, or map what is there.

    Processes that want the same wait for the first. What is announced goes to stderr.

    Raises:
        UserError: a file is not there, or the disk has no room for the pixels.
        Interrupted: Ctrl-C; what is decoded is kept.
    """
    folder = cache_folder() / "pictures" / _key(source, size, channels)
    shape = (len(source), channels, size, size)
    with _named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        pictures = _mapped(folder, shape)
        if pictures is None:
            with FileLock(folder / "lock"):
                pictures = _mapped(folder, shape)
                if pictures is None:
                    try:
                        _decode_all(folder, source, shape)
                    except KeyboardInterrupt:
                        raise Interrupted("stopped while pictures were decoded; the same command goes on") from None
                    pictures = _mapped(folder, shape)
        if pictures is None:
            raise UserError(f"{folder} was changed while pictures were decoded; the same command goes on")
        return pictures


def _mapped(folder: Path, shape: Shape) -> Pictures | None:
    """Map the pixels of a folder that is complete and whole; None where it is not."""
    try:
        manifest = read_npz(folder / MANIFEST, (folder / MANIFEST).stat().st_size)
        damaged = dict(zip(manifest["damaged"].tolist(), manifest["reasons"].tolist(), strict=True))
        whole = (folder / PIXELS).stat().st_size == np.prod(shape) and manifest["digests"].shape == (shape[0], 4)
    except (OSError, ValueError, KeyError):
        return None
    return (
        Pictures(np.memmap(folder / PIXELS, np.uint8, "r", shape=shape), manifest["digests"], damaged)
        if whole
        else None
    )


def _key(source: PictureSource, size: int, channels: int) -> str:
    """Return a key that is equal where the decoded pictures are."""
    digest = hashlib.sha256(f"{VERSION} {size} {channels} {len(source)}".encode())
    for text in source.identity():
        digest.update(f"\n{text}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _decode_all(folder: Path, source: PictureSource, shape: Shape) -> None:
    """Decode the pictures that are not decoded yet, and write the manifest."""
    total = int(np.prod(shape))
    pixels = folder / PIXELS
    if not pixels.is_file() or pixels.stat().st_size != total:  # what the journal tells of it is not there
        (folder / DONE).unlink(missing_ok=True)
    chunks = range((len(source) + CHUNK - 1) // CHUNK)
    done = _read_done(folder / DONE, len(source))
    numbers = [number for number in chunks if number not in done]
    _make_room(folder, total)
    went_on = f", {len(done) * CHUNK} of them from before" if done else ""
    announce(f"decoding {len(source)} pictures{went_on}: {_bytes(total)} in {folder}")
    with (
        (folder / DONE).open("a", encoding="utf-8") as journal,
        progress_bar("decoding", len(chunks)) as advance,
        closing(source.decoded(folder, numbers, shape)) as answers,
    ):
        advance(len(done))
        for answer in answers:
            journal.write(json.dumps(answer) + "\n")
            journal.flush()
            done[answer["chunk"]] = answer
            advance(len(done))
    if missing := len(chunks) - len(done):
        raise UserError(f"{missing} of {len(chunks)} parts of the pictures were not decoded; the same command goes on")
    _write_manifest(folder, [done[number] for number in chunks], shape)


def _write_manifest(folder: Path, answers: list[Answer], shape: Shape) -> None:
    how = f" {VERSION} {shape[2]} {shape[1]}".encode()
    sums = [bytes.fromhex(text) for answer in answers for text in answer["sha256"]]
    digests = np.frombuffer(b"".join(hashlib.sha256(one + how).digest() for one in sums), "<i8").reshape(-1, 4)
    damaged = [(i + CHUNK * n, why) for n, answer in enumerate(answers) for i, why in answer["damaged"]]
    with replacing(folder / MANIFEST) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            digests=digests,
            damaged=np.array([number for number, _ in damaged], np.int64),
            reasons=np.array([why for _, why in damaged], np.str_),
        )
    for name in (PENDING, DONE):
        (folder / name).unlink(missing_ok=True)


def _read_done(path: Path, count: int) -> dict[int, Answer]:
    """Read which chunks of so many pictures are decoded; a kill may have cut the last line."""
    done = {}
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            answer = json.loads(line)
            number, sums = answer["chunk"], [bytes.fromhex(text) for text in answer["sha256"]]
            expected = len(range(number * CHUNK, min((number + 1) * CHUNK, count)))
            if (
                0 < expected == len(sums)
                and all(len(one) == 32 for one in sums)
                and isinstance(answer["damaged"], list)
            ):
                done[number] = answer
    path.write_text("".join(json.dumps(answer) + "\n" for answer in done.values()), "utf-8")
    return done


def _make_room(folder: Path, total: int) -> None:
    """Give the file of pixels its size. Raises UserError where the disk has less room."""
    path = folder / PIXELS
    there = path.stat().st_blocks * 512 if path.exists() else 0
    free = shutil.disk_usage(folder).free
    if total - there > free - SPARE:
        raise UserError(
            f"the decoded pictures take {_bytes(total)}, and {folder} has {_bytes(free)} free; set "
            f"dataset.image_size lower, or {CACHE_VARIABLE} to a folder on another disk"
        )
    with path.open("ab") as file:
        file.truncate(total)


def _bytes(count: int) -> str:
    """Format a number of bytes, as in `843 MB` or `82.3 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    """Raise UserError for what keeps a folder from being written."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"the decoded pictures cannot be kept in {folder}: {why}; the same command goes on, and {CACHE_VARIABLE} "
            "names another folder"
        ) from None
