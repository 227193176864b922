"""What exists is found without being imported, by anyone who adds to it, and only once."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from invbench.errors import UserError
from invbench.method import Method
from invbench.registry import BACKBONES, DATASETS, METHODS, Registry, unmet


def test_listing_imports_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from invbench.cli import app; app(['ls'], standalone_mode=False);"
        "app(['ls', 'cells'], standalone_mode=False);"
        "sys.exit(sorted({'torch', 'pandas', 'sklearn', 'rich'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "and_mask" in done.stdout
    assert "spirals" in done.stdout


@pytest.mark.parametrize("registry", [METHODS, DATASETS, BACKBONES], ids=lambda registry: registry.kind)
def test_what_a_file_says_of_itself_is_what_its_class_says(registry: Registry) -> None:
    for name, entry in registry.entries().items():
        if entry.origin.startswith("invbench."):
            assert registry.traits(name) == getattr(registry.load(name), registry.trait)
            if registry is DATASETS:
                assert registry.literal(name, "release", "") == registry.load(name).release
            assert entry.summary.endswith((".", ").", "?")), f"{name}: the first line should be a sentence"


def test_misspelt_name_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match="no method 'andmask'; did you mean 'and_mask'"):
        METHODS.load("andmask")


def test_name_far_from_all_gets_the_list() -> None:
    with pytest.raises(UserError, match="known: and_mask_regression, chain_sem, cifar10, "):
        DATASETS.load("xyzzy")


def test_a_taken_name_is_refused_and_says_by_whom(registered: list[str]) -> None:
    METHODS.register("mine")(type("Mine", (Method,), {"__doc__": "Mine.", "__module__": "notebook"}))
    registered.append("mine")
    with pytest.raises(UserError, match="two methods are named 'mine': notebook.Mine and elsewhere.Other"):
        METHODS.register("mine")(type("Other", (Method,), {"__module__": "elsewhere"}))
    with pytest.raises(UserError, match=r"two methods are named 'erm': invbench.methods.erm.* and elsewhere.Other"):
        METHODS.register("erm")(type("Other", (Method,), {"__module__": "elsewhere"}))


def test_the_same_class_may_be_defined_again(registered: list[str]) -> None:
    for _ in range(2):  # a notebook cell that is run twice
        METHODS.register("mine")(type("Mine", (Method,), {"__module__": "notebook"}))
    registered.append("mine")
    assert METHODS.load("mine").__qualname__ == "Mine"


def test_names_that_could_leave_the_results_folder_are_refused() -> None:
    with pytest.raises(UserError, match="lower-case letters"):
        METHODS.register("../mine")


def test_third_party_entry_points(tmp_path: Path) -> None:
    """A distribution that adds a method, found by the command without any line here knowing it."""
    _distribution(tmp_path, "acme", "shrug", "acme_methods:Shrug")
    (tmp_path / "acme_methods.py").write_text(
        "from invbench.method import Method\nfrom invbench.registry import register_method\n"
        "@register_method('shrug')\nclass Shrug(Method):\n    '''Does nothing.'''\n    requires = ('environments',)\n",
        encoding="utf-8",
    )
    listed = _bench(tmp_path, "ls", "methods")
    assert "shrug" in listed.stdout
    assert "from the package acme" in listed.stdout
    shown = _bench(tmp_path, "show", "shrug")
    assert "requires: environments" in shown.stdout
    assert shown.returncode == 0


def test_third_party_package_that_gets_its_class_from_a_module(tmp_path: Path) -> None:
    _distribution(tmp_path, "acme", "shrug", "acme:Shrug")
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "__init__.py").write_text("from acme.shrug import Shrug\n", encoding="utf-8")
    (tmp_path / "acme" / "shrug.py").write_text(
        "from invbench.method import Method\nfrom invbench.registry import register_method\n"
        "@register_method('shrug')\nclass Shrug(Method):\n    pass\n",
        encoding="utf-8",
    )
    shown = _bench(tmp_path, "show", "shrug")
    assert (shown.returncode, shown.stderr) == (0, "")


def test_third_party_collision_and_broken_package(tmp_path: Path) -> None:
    _distribution(tmp_path, "acme", "erm", "acme_methods:Shrug")
    listed = _bench(tmp_path, "ls", "methods")
    assert listed.returncode == 2
    assert listed.stderr.startswith("error: two methods are named 'erm': invbench.methods.erm and acme_methods")
    other = tmp_path / "other"
    other.mkdir()
    _distribution(other, "broken", "gone", "no_such_module:Gone")
    shown = _bench(other, "show", "gone")
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
    assert "'gone' from the package broken does not load" in shown.stderr


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("", "AttributeError: module 'acme_methods' has no attribute 'Shrug'"),
        ("Shrug = 3", "acme_methods:Shrug must be a class whose 'requires' is a tuple of names"),
        ("class Shrug: requires = 3", "must be a class whose 'requires' is a tuple of names"),
    ],
)
def test_third_party_code_that_does_not_load_is_left_out(tmp_path: Path, code: str, why: str) -> None:
    _distribution(tmp_path, "acme", "shrug", "acme_methods:Shrug")
    (tmp_path / "acme_methods.py").write_text(code, encoding="utf-8")
    listed = _bench(tmp_path, "ls", "methods")
    assert (listed.returncode, listed.stderr.count("\n")) == (0, 1)
    assert listed.stderr.startswith("warning: left out: method 'shrug' from the package acme does not load: ")
    assert why in listed.stderr
    assert "and_mask" in listed.stdout
    assert "shrug" not in listed.stdout
    shown = _bench(tmp_path, "show", "shrug")
    assert (shown.returncode, shown.stderr.count("\n"), shown.stdout) == (2, 1, "")
    assert why in shown.stderr


@pytest.mark.parametrize(("kind", "verb"), [("methods", "doctor"), ("datasets", "data ls"), ("backbones", "ls cells")])
def test_third_party_code_that_does_not_load_stops_nothing_else(tmp_path: Path, kind: str, verb: str) -> None:
    _distribution(tmp_path, "acme", "shrug", "acme_code:Shrug", kind)
    (tmp_path / "acme_code.py").write_text("raise SystemExit", encoding="utf-8")
    done = _bench(tmp_path, *verb.split())
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: left out: ") <= 1
    assert "shrug" not in done.stdout


def test_a_file_must_register_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "plugins"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "right.py").write_text('"""A file."""\n', encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="does not register a method named 'right'"):
        Registry("method", "plugins", "requires").load("right")


def test_a_file_that_is_no_python_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.py").write_text('"""Good."""')
    (tmp_path / "broken.py").write_text("x = 1\ndef broken(:")
    (tmp_path / "absent.py").write_text("import nowhere_to_be_found")
    monkeypatch.setattr("invbench.registry._folder_of", lambda group: tmp_path)
    registry = Registry("method", "no_such_group", trait="requires")
    assert list(registry.entries()) == ["absent", "broken", "good"]
    assert registry.traits("broken") == ()
    with pytest.raises(UserError, match=r"broken.py, line 2: invalid syntax"):
        registry.load("broken")
    with pytest.raises(UserError, match=r"absent.py cannot be imported: No module named"):
        registry.load("absent")


def test_unmet_requirements() -> None:
    assert unmet(("environments", "image"), ("image",)) == ("environments",)
    assert unmet((), ("image",)) == ()


@pytest.fixture
def registered() -> Iterator[list[str]]:
    """Names to forget afterwards."""
    names: list[str] = []
    yield names
    for name in names:
        METHODS._registered.pop(name, None)


def _distribution(folder: Path, distribution: str, name: str, target: str, kind: str = "methods") -> None:
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[invbench.{kind}]\n{name} = {target}\n", encoding="utf-8")


def _bench(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from invbench.cli import main; sys.argv[0] = 'bench'; main()"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r}); {code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
