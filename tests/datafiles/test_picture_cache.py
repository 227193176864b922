"""Pictures are decoded once, whatever kills the preparation, and within the room that there is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_tree

from invbench.datafiles import picture_cache, picture_sources
from invbench.datafiles.decoding import decode, decode_files
from invbench.datafiles.picture_cache import Pictures
from invbench.datafiles.picture_sources import CHUNK, PictureFiles
from invbench.errors import UserError

PREPARE = """
import sys, pathlib
from invbench.datafiles.picture_cache import decoded_pictures
from invbench.datafiles.picture_sources import PictureFiles
paths = sorted(pathlib.Path(sys.argv[1]).rglob("*.png"))
pictures = decoded_pictures(PictureFiles(paths), 32, 3)
print(len(pictures.pixels), int(pictures.pixels.sum()))
"""


def decoded_pictures(paths: list[Path], size: int, channels: int) -> Pictures:
    return picture_cache.decoded_pictures(PictureFiles(paths), size, channels)


def paths_of(tree: Path) -> list[Path]:
    return sorted(tree.rglob("*.png"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "pictures", each=40)


def test_pixels_and_digests_do_not_depend_on_the_processes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = paths_of(tree)
    assert len(paths) > 3 * CHUNK
    whole = decoded_pictures(paths, 8, 3)
    expected, sums, damaged = decode_files([str(path) for path in paths], 8, 3)
    assert np.array_equal(whole.pixels, expected)
    assert not damaged
    assert len(set(map(bytes, whole.digests))) == len(set(sums)) == len(paths)
    shutil.rmtree(os.environ["INVBENCH_CACHE"])
    monkeypatch.setattr(picture_sources, "available_cores", lambda: 1)
    assert np.array_equal(decoded_pictures(paths, 8, 3).digests, whole.digests)


def test_a_killed_preparation_goes_on(tmp_path: Path) -> None:
    """The process and those that decode for it are killed, and a line of the journal is cut."""
    tree = write_tree(tmp_path / "pictures", each=400, size=64)
    command = [sys.executable, "-c", PREPARE, str(tree)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    cache = Path(os.environ["INVBENCH_CACHE"]) / "pictures"
    deadline = time.monotonic() + 60
    while not (journals := [path for path in cache.rglob("done.jsonl") if path.read_text().count("\n") > 3]):
        assert time.monotonic() < deadline
        assert first.poll() is None, "it was over before it could be killed"
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = journals[0].read_text().splitlines()
    assert 3 < len(done) < len(paths_of(tree)) // CHUNK
    with journals[0].open("a") as file:
        file.write(done[-1][:20])
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{len(done) * CHUNK} of them from before" in again.stderr
    expected, _, _ = decode_files([str(path) for path in paths_of(tree)], 32, 3)
    assert again.stdout.split() == [str(len(expected)), str(int(expected.sum()))]
    assert not list(cache.rglob("done.jsonl"))


def test_what_is_decoded_is_not_decoded_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = decoded_pictures(paths_of(tree), 8, 1)
    monkeypatch.setattr(picture_cache, "_decode_all", None)
    assert np.array_equal(decoded_pictures(paths_of(tree), 8, 1).pixels, first.pixels)


def test_a_full_disk_is_refused_before_and_named_after(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
        with pytest.raises(UserError, match=r"take 1 MB, and .* has 1 MB free; set dataset\.image_size lower"):
            decoded_pictures(paths_of(tree), 32, 3)
    lines: list[dict[str, Any]] = [{"error": os.strerror(28)}]
    with monkeypatch.context() as context:
        context.setattr(picture_sources, "_lines_of_workers", lambda *_: (json.dumps(line) + "\n" for line in lines))
        with pytest.raises(UserError, match="No space left on device; the same command goes on"):
            decoded_pictures(paths_of(tree), 8, 3)
    assert len(decoded_pictures(paths_of(tree), 8, 3).pixels) == len(paths_of(tree))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(content: bytes) -> None:
    for beginning in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x00\x00\x00\x00WEBP"):
        try:
            assert decode(beginning + content, 4, 3).shape == (3, 4, 4)
        except ValueError as error:
            assert "\n" not in str(error)


def test_a_picture_that_claims_too_much_is_refused() -> None:
    header = b"P6 100000 100000 255\n"
    with pytest.raises(ValueError, match=r"10000000000 pixels\) exceeds limit"):
        decode(header + b"\0" * 10, 8, 3)


def test_what_is_damaged_or_gone_is_decoded_again(tree: Path) -> None:
    """The pixels while a journal tells of them, and the manifest in all ways."""
    paths = paths_of(tree)
    whole = np.array(decoded_pictures(paths, 8, 3).pixels)
    (folder,) = (Path(os.environ["INVBENCH_CACHE"]) / "pictures").iterdir()
    manifest = (folder / "pictures.npz").read_bytes()
    line = {"chunk": 0, "sha256": ["00" * 32] * CHUNK, "damaged": []}
    for journal in (json.dumps(line).encode() + b"\n", b"\xff\xfe\n5\n[1]\n{}\n", b'{"chunk": 1}\n'):
        for damage in (b"", manifest[:100], None):
            if damage is None:
                (folder / "pictures.npz").unlink()
                (folder / "pixels.bin").unlink()
            else:
                (folder / "pictures.npz").write_bytes(damage)
                (folder / "pixels.bin").write_bytes(b"")
            (folder / "done.jsonl").write_bytes(journal)
            assert np.array_equal(decoded_pictures(paths, 8, 3).pixels, whole)
            assert (folder / "pictures.npz").read_bytes()[:2] == b"PK"


def test_special_files_are_no_pictures(tree: Path) -> None:
    """A pipe would wait for ever, and a device has no end."""
    os.mkfifo(tree / "art" / "cat" / "pipe.png")
    (tree / "art" / "cat" / "zero.png").symlink_to("/dev/zero")
    damaged = decoded_pictures(paths_of(tree), 8, 3).damaged
    assert list(damaged.values()) == ["it is no regular file"] * 2


def test_a_picture_that_cannot_be_read_now_is_asked_for_again(tree: Path) -> None:
    (tree / "art" / "cat" / "away.png").symlink_to(tree / "later.png")
    paths = [*paths_of(tree)]
    with pytest.raises(UserError, match="away.png cannot be read: No such file"):
        decoded_pictures(paths, 8, 3)
    shutil.copy(tree / "art" / "cat" / "0.png", tree / "later.png")
    assert not decoded_pictures(paths, 8, 3).damaged
