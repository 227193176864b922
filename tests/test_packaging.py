"""The installed package takes no name that belongs to somebody else."""

import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path


def test_hugging_face_datasets_is_still_found(tmp_path: Path) -> None:
    """A distribution named `datasets` beside this one; both import, each as itself."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("WHOSE = 'theirs'\n", encoding="utf-8")
    info = tmp_path / "datasets-99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: datasets\nVersion: 99.0\n", encoding="utf-8")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r})\n"  # after site-packages, as the worse case
        "import datasets, invbench.datasets, invbench.methods, invbench.configs\n"
        "from importlib.metadata import version\n"
        "print(datasets.WHOSE, version('datasets'), invbench.datasets.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.split() == ["theirs", "99.0", "invbench.datasets"], done.stderr


def test_the_distribution_installs_one_top_level_package() -> None:
    """By the installed record; a checkout's own egg-info is none."""
    (record,) = filter(None, (distribution.read_text("RECORD") for distribution in distributions(name="invbench")))
    tops = {line.partition(",")[0].partition("/")[0] for line in record.splitlines()}
    others = {top for top in tops if not top.startswith(("invbench-", "__editable__", "..", "__pycache__"))}
    assert others <= {"invbench"}
