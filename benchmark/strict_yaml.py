"""YAML with JSON's idea of data, within bounds."""

import re
from pathlib import Path
from typing import Any

import yaml

from invbench.errors import UserError, brief

LONGEST = 2**20
"""Characters, or bytes, of a YAML text."""


DEEPEST = 32
"""Levels of tables and lists in it; the package's own files have 7."""


MOST_VALUES = 100_000
"""Values in it, with what aliases stand for written out."""


INTEGERS = range(-(2**53) + 1, 2**53)
"""What every reader of JSON has exactly; so many of anything are far from what integers of 64 bits can count."""


MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML with JSON's idea of data, within bounds.

    1e-3 is a number; yes, 1:30 and 2020-01-01 are strings. Keys are strings, each once in a table; `<<` takes over what
    a table, or each of a list, has and this one has not. There are no tags.
    All is checked while the text is read, before any of it is made into data.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = self._values = 0
        self._sizes: dict[yaml.Node, int] = {}
        """Values in each node that is complete."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one value with all that it contains."""
        event, before = self.peek_event(), self._values
        self._level += 1
        self._check_event(event)
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _refused(f"*{event.anchor} stands for something that it is in itself", event)
            self._values += self._sizes[node]
        else:
            _check_keys(node)
            self._values += 1
            self._sizes[node] = self._values - before
        if self._values > MOST_VALUES:
            raise _refused(f"there are more than {MOST_VALUES} values, with those that aliases stand for", event)
        return node

    def _check_event(self, event: Any) -> None:
        if self._level > DEEPEST:
            raise _refused(f"there are more than {DEEPEST} levels", event)
        if getattr(event, "tag", None) is not None:
            raise _refused(f"tags such as {brief(event.tag)} are not known", event)
        if isinstance(event, yaml.ScalarEvent) and re.search("[\0\ud800-\udfff]", event.value):
            raise _refused("there is a character that is no text", event)


def _check_keys(node: yaml.Node) -> None:
    """Check the keys of one mapping."""
    known = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.tag == MERGE:
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not all(isinstance(one, yaml.MappingNode) for one in merged):
                raise _refused("<< takes a table, or a list of tables, such as *name", key)
        elif key.tag != "tag:yaml.org,2002:str":
            raise _refused("a key is no text; put it in quotes", key)
        if key.value in known:
            raise _refused(f"'{brief(key.value)}' is there twice", key)
        known.add(key.value)


def _refused(problem: str, position: Any) -> yaml.MarkedYAMLError:
    """Make the error for an event or a node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=position.start_mark)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > 20 or int(node.value) not in INTEGERS:
        raise _refused(f"{brief(node.value)} is no whole number below 2^53", node)
    return int(node.value)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor(MERGE, lambda loader, node: node.value)  # where it is no key
_Loader.add_implicit_resolver(MERGE, re.compile("^<<$"), ["<"])
for _tag, _pattern, _first in (
    ("null", r"null|~|", "n~\0"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str, source: str) -> Any:
    """Parse a YAML text into JSON's kinds of values, within bounds.

    Raises:
        UserError: it is malformed, too long, too deep, or of another kind; the message names `source` and the line.
    """
    if len(text) > LONGEST:
        raise UserError(f"{source} is too long: it may have {LONGEST} characters")
    try:
        loader = _Loader(text)  # which reads the text's characters already
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{source}{line} is not valid YAML: {problem}") from None


def read_yaml(path: Path, source: str) -> Any:
    """Parse a YAML file as `parse_yaml` does. Raises UserError also where it is no file or no text."""
    try:
        if not path.is_file():  # a pipe would be waited for, and a device has no end
            raise UserError(f"{source}: {path} is no file")
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from None
    if len(content) > LONGEST:
        raise UserError(f"{source} is too long: it may have {LONGEST} bytes")
    try:
        return parse_yaml(content.decode("utf-8"), source)
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is no text in UTF-8: {error.reason} at byte {error.start + 1}") from None
