"""What exists is found without being imported, by anyone who adds to it, and only once."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from invbench.core.method import Method
from invbench.core.registry import BACKBONES, DATASETS, IMPORT_VARIABLE, METHODS, Registry, import_file, unmet
from invbench.errors import UserError

SHRUG = """
from invbench.core.method import Method
from invbench.core.registry import register_method

@register_method("shrug")
class Shrug(Method):
    pass
"""
HOSTILE = """
class Own(Exception):
    def __str__(self):
        raise KeyboardInterrupt
    __repr__ = __str__
"""


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
                for literal in ("release", "required_setting"):
                    assert registry.literal(name, literal, "") == getattr(registry.load(name), literal)
            assert entry.summary.endswith((".", ").", "?")), f"{name}: the first line should be a sentence"


def test_misspelt_name_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match="no method 'andmask'; did you mean 'and_mask'"):
        METHODS.load("andmask")


def test_name_far_from_all_gets_the_list() -> None:
    with pytest.raises(UserError, match="known: cnn_small, conv13, deep_sets, "):
        BACKBONES.load("xyzzy")


@METHODS.temporary()
def test_a_taken_name_is_refused_and_says_by_whom() -> None:
    METHODS.register("mine")(type("Mine", (Method,), {"__doc__": "Mine.", "__module__": "notebook"}))
    with pytest.raises(UserError, match="two methods are named 'mine': notebook.Mine and elsewhere.Other"):
        METHODS.register("mine")(type("Other", (Method,), {"__module__": "elsewhere"}))
    with pytest.raises(UserError, match=r"two methods are named 'erm': invbench.methods.erm.* and elsewhere.Other"):
        METHODS.register("erm")(type("Other", (Method,), {"__module__": "elsewhere"}))


@pytest.mark.parametrize("what", [3, None, "erm", print, Method(), type("Mine", (), {})])
def test_only_classes_of_methods_can_be_methods(what: object) -> None:
    with pytest.raises(UserError, match="method 'mine' must be a class that derives from invbench.core.method.Method"):
        METHODS.register("mine")(what)  # type: ignore[type-var]


@METHODS.temporary()
def test_the_same_class_may_be_defined_again() -> None:
    for _ in range(2):  # a notebook cell that is run twice
        METHODS.register("mine")(type("Mine", (Method,), {"__module__": "notebook"}))
    assert METHODS.load("mine").__qualname__ == "Mine"


def test_names_that_could_leave_the_results_folder_are_refused() -> None:
    with pytest.raises(UserError, match="lower-case letters"):
        METHODS.register("../mine")


def test_third_party_entry_points(tmp_path: Path) -> None:
    """A distribution that adds a method, found by the command without any line here knowing it."""
    _distribution(tmp_path, "acme", "shrug", "acme_methods:Shrug")
    (tmp_path / "acme_methods.py").write_text(
        "from invbench.core.method import Method\nfrom invbench.core.registry import register_method\n"
        "@register_method('shrug')\nclass Shrug(Method):\n    '''Does nothing.'''\n    requires = ('environments',)\n",
        encoding="utf-8",
    )
    listed = _bench(tmp_path, "ls", "methods")
    assert "shrug" in listed.stdout
    assert "from the package acme" in listed.stdout
    completed = _bench(tmp_path, "show", "shrug")
    assert "requires: environments" in completed.stdout
    assert completed.returncode == 0


def test_third_party_package_that_gets_its_class_from_a_module(tmp_path: Path) -> None:
    _distribution(tmp_path, "acme", "shrug", "acme:Shrug")
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "__init__.py").write_text("from acme.shrug import Shrug\n", encoding="utf-8")
    (tmp_path / "acme" / "shrug.py").write_text(
        "from invbench.core.method import Method\nfrom invbench.core.registry import register_method\n"
        "@register_method('shrug')\nclass Shrug(Method):\n    pass\n",
        encoding="utf-8",
    )
    completed = _bench(tmp_path, "show", "shrug")
    assert (completed.returncode, completed.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("erm", "its name is that of invbench.methods.erm; rename or uninstall one"),
        pytest.param("shrug", "its name is that of acme_methods; rename or uninstall one", marks=pytest.mark.slow),
        ("../Shrug-2", "its name must be lower-case letters, digits and underscores"),
    ],
)
def test_third_party_names_that_cannot_be_used_are_left_out(tmp_path: Path, name: str, why: str) -> None:
    _distribution(tmp_path, "acme", "shrug", "acme_methods:Shrug")
    (tmp_path / "acme_methods.py").write_text(SHRUG, encoding="utf-8")
    _distribution(tmp_path / "other", "rival", name, "rival_methods:Shrug")
    for verb, shown in (("ls methods", "erm "), ("show shrug", "shrug")):
        done = _bench(tmp_path, *verb.split(), more=[tmp_path / "other"])
        assert shown in done.stdout
        assert (done.returncode, done.stderr) == (
            0, f"warning: left out: method '{name}' from the package rival: {why}\n"
        )  # fmt: skip


def test_third_party_package_without_its_module(tmp_path: Path) -> None:
    _distribution(tmp_path, "broken", "gone", "no_such_module:Gone")
    completed = _bench(tmp_path, "show", "gone")
    assert (completed.returncode, completed.stderr.count("\n")) == (2, 1)
    assert "'gone' from the package broken does not load" in completed.stderr


SLOW = pytest.mark.slow
NO_CLASS = "acme_methods:Shrug must be a class that derives from invbench.core.method.Method"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        pytest.param("raise SystemExit(3)", "SystemExit: 3", marks=SLOW),
        ("def broken(:", "SyntaxError"),
        pytest.param("raise RuntimeError('two\\nlines')", "RuntimeError: two lines", marks=SLOW),
        ("", "AttributeError: module 'acme_methods' has no attribute 'Shrug'"),
        ("raise KeyboardInterrupt", ": KeyboardInterrupt\n"),
        pytest.param("raise GeneratorExit", ": GeneratorExit\n", marks=SLOW),
        pytest.param("class Own(BaseException): pass\nraise Own('so')", "Own: so", marks=SLOW),
        (f"{HOSTILE}raise Own", "Own: its message cannot be read"),
        ("raise ValueError('long ' * 300_000)", f"ValueError: {('long ' * 40)[:188]}"),
        ("raise ValueError('\\x1b[2J\\u202e')", r"ValueError: \x1b[2J\u202e"),
        pytest.param("import sys\nsys.stderr.close()\nraise ValueError('so')", "ValueError: so", marks=SLOW),
        pytest.param(
            "import warnings\nwarnings.simplefilter('error')\nraise ValueError('so')",
            "ValueError: so",
            marks=SLOW,
        ),
        pytest.param("Shrug = 3", NO_CLASS, marks=SLOW),
        pytest.param("Shrug = None", NO_CLASS, marks=SLOW),
        pytest.param("def Shrug(): pass", NO_CLASS, marks=SLOW),
        pytest.param("class Shrug: pass", NO_CLASS, marks=SLOW),
        ("from invbench.core.method import Method\nShrug = Method()", NO_CLASS),
        pytest.param("from invbench.core.data import Dataset as Shrug", NO_CLASS, marks=SLOW),
        (
            "import typing, invbench.core.method as m\nclass Shrug(m.Method): requires: typing.ClassVar = 3",
            "must be a class whose 'requires' is a tuple of names",
        ),
        (
            "from invbench.core.registry import register_method\n@register_method('shrug')\ndef Shrug(): pass",
            "method 'shrug' must be a class that derives from invbench.core.method.Method",
        ),
        (f"{SHRUG}@register_method('erm')\nclass Other(Shrug): pass", "two methods are named 'erm'"),
    ],
)
def test_third_party_code_that_does_not_load_is_left_out(tmp_path: Path, code: str, why: str) -> None:
    _distribution(tmp_path, "acme", "shrug", "acme_methods:Shrug")
    (tmp_path / "acme_methods.py").write_text(code, encoding="utf-8")
    listed = _bench(tmp_path, "ls", "methods")
    assert (listed.returncode, listed.stderr.count("\n")) == (0, 1)
    assert listed.stderr.startswith("warning: left out: method 'shrug' from the package acme does not load: ")
    assert why in listed.stderr
    assert len(listed.stderr) < 400
    assert "and_mask" in listed.stdout
    assert "shrug" not in listed.stdout


def test_third_party_code_that_does_not_load_leaves_json_as_it_is_and_cannot_be_run(tmp_path: Path) -> None:
    _distribution(tmp_path, "acme", "shrug", "acme_methods:Shrug")
    (tmp_path / "acme_methods.py").write_text("print('mine')\nraise KeyboardInterrupt", encoding="utf-8")
    why = "method 'shrug' from the package acme does not load: KeyboardInterrupt\n"
    listed = _bench(tmp_path, "ls", "--json")
    assert "erm" in {method["name"] for method in json.loads(listed.stdout)["methods"]}
    assert listed.stderr == f"mine\nwarning: left out: {why}"
    for verb in ("show shrug", "run -m shrug -d spirals"):
        done = _bench(tmp_path, *verb.split())
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"mine\nerror: {why}")


@pytest.mark.parametrize(
    ("kind", "base", "what"),
    [("datasets", "core.data.Dataset", "load"), ("backbones", "core.backbone.Backbone", "build")],
)
def test_third_party_class_without_what_it_must_have_is_left_out(
    tmp_path: Path, kind: str, base: str, what: str
) -> None:
    _distribution(tmp_path, "acme", "shrug", "acme_code:Shrug", kind)
    module, _, name = base.rpartition(".")
    code = f"from invbench.{module} import {name}\nclass Shrug({name}): pass"
    (tmp_path / "acme_code.py").write_text(code, encoding="utf-8")
    listed = _bench(tmp_path, "ls")
    assert (listed.returncode, listed.stderr.count("\n")) == (0, 1)
    assert f"acme_code:Shrug must be a class that has {what}, as invbench.{base} says" in listed.stderr


def test_third_party_dataset_of_no_known_release_is_left_out(tmp_path: Path) -> None:
    _distribution(tmp_path, "acme", "shrug", "acme_code:Shrug", "datasets")
    (tmp_path / "acme_code.py").write_text(
        "from typing import ClassVar\nfrom invbench.core.data import Dataset\n"
        "class Shrug(Dataset):\n    release: ClassVar = 'none_such'\n    def load(self, seed): ...\n",
        encoding="utf-8",
    )
    listed = _bench(tmp_path, "data", "ls")
    assert (listed.returncode, listed.stderr.count("\n")) == (0, 1)
    assert "'shrug' from the package acme does not load: no release is named 'none_such'" in listed.stderr
    assert "mnist" in listed.stdout


SWALLOWING = "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    raise ValueError('mine') from None\n"


@pytest.mark.parametrize("sleeping", ["time.sleep(60)\n", SWALLOWING])
@pytest.mark.parametrize("verb", ["ls", pytest.param("show shrug", marks=pytest.mark.slow)])
def test_ctrl_c_ends_the_command_while_third_party_code_is_imported(tmp_path: Path, verb: str, sleeping: str) -> None:
    """And a line says what it waited for."""
    _distribution(tmp_path, "acme", "shrug", "acme_methods:Shrug")
    code = f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\n{sleeping}{SHRUG}"
    (tmp_path / "acme_methods.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-c", _command(tmp_path, patience=0.1), *verb.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "importing method 'shrug' from the package acme takes long\n"
        assert (tmp_path / "begun").exists()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said in ("", "error: interrupted\n"), "newer versions of typer say nothing"


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
    (package / "leaving.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("method", "plugins", "requires", "invbench.core.method.Method")
    with pytest.raises(UserError, match="does not register a method named 'right'"):
        registry.load("right")
    with pytest.raises(UserError, match=r"leaving.py cannot be imported: SystemExit"):
        registry.load("leaving")


def test_a_file_that_is_no_python_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.py").write_text('"""Good."""')
    (tmp_path / "broken.py").write_text("x = 1\ndef broken(:")
    (tmp_path / "absent.py").write_text("import nowhere_to_be_found")
    monkeypatch.setattr("invbench.core.registry._folder_of", lambda group: tmp_path)
    registry = Registry("method", "no_such_group", "requires", "invbench.core.method.Method")
    assert list(registry.entries()) == ["absent", "broken", "good"]
    assert registry.traits("broken") == ()
    with pytest.raises(UserError, match=r"broken.py, line 2: invalid syntax"):
        registry.load("broken")
    with pytest.raises(UserError, match=r"absent.py cannot be imported: ModuleNotFoundError: No module"):
        registry.load("absent")


def test_files_that_a_variable_names_are_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside.py").write_text("NUMBER = 3")
    (tmp_path / "mine.py").write_text(f"import beside\n{SHRUG}    number: int = beside.NUMBER")
    with METHODS.temporary():
        monkeypatch.setenv(IMPORT_VARIABLE, str(tmp_path / "mine.py"))
        assert "shrug" in METHODS.entries()
        assert METHODS.load("shrug").model_fields["number"].default == 3
        assert import_file(tmp_path / "mine.py") is sys.modules[METHODS.load("shrug").__module__]
        (tmp_path / "broken.py").write_text("1 / 0")
        absent, broken = "is no Python file", "does not load: ZeroDivisionError"
        for name, why in (("absent.py", absent), ("x" * 5000, absent), ("broken.py", broken)):
            monkeypatch.setenv(IMPORT_VARIABLE, str(tmp_path / name))
            for _ in range(2):  # it stays an error
                with pytest.raises(UserError, match=why):
                    METHODS.known()
        sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]


def test_unmet_requirements() -> None:
    assert unmet(("environments", "image"), ("image",)) == ("environments",)
    assert unmet((), ("image",)) == ()


def _distribution(folder: Path, distribution: str, name: str, target: str, kind: str = "methods") -> None:
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[invbench.{kind}]\n{name} = {target}\n", encoding="utf-8")


def _command(*folders: Path, patience: float = 60.0) -> str:
    """Return the program of the command, with folders in which packages are installed.

    It heeds Ctrl-C also where the tests run in the background, whose children ignore it.
    """
    return (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}; from invbench.core import third_party; "
        f"third_party.PATIENCE = {patience}; from invbench.cli import main; sys.argv[0] = 'bench'; main()"
    )


def _bench(path: Path, *arguments: str, more: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _command(path, *more), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
