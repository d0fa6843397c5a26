"""YAML with line numbers: where each value stands, for messages."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from deepsched.errors import OptionError

_MOST_VALUES = 100_000
"""Aliases of aliases are few lines and any number of values."""

Path = tuple[str, ...]
"""The keys, as they are written, and indices that lead to a value."""


class YamlText:
    """The data of a YAML text, and the line of each value.

    Args:
        where: the file's name, for messages.

    Raises:
        OptionError: it is no YAML, its top is no mapping, or a key is there twice.

    Example:
        >>> text = YamlText("models:\\n  a:\\n    path: a.onnx\\n", "m.yaml")
        >>> text.data["models"], text.place("models", "a", "path")
        ({'a': {'path': 'a.onnx'}}, 'm.yaml, line 3')
    """

    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._lines: dict[Path, int] = {}
        self.data: Any = {}
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            if node is not None:
                self._note(node, ())
                self.data = self._constructed(loader, node)
        except yaml.MarkedYAMLError as error:
            line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
            raise OptionError(f"{where}{line}: {error.problem or error.context}") from None
        except yaml.YAMLError as error:
            raise OptionError(f"{where}: {error}") from None
        except RecursionError:
            raise OptionError(f"{where}: values are nested too deeply") from None
        if not isinstance(self.data, dict):
            raise OptionError(f"{where}: expected a mapping such as 'models: ...' at the top")

    def place(self, *path: Hashable) -> str:
        """File and line of the value at `path`, or of what is nearest above it."""
        written = tuple(map(str, path))
        while written and written not in self._lines:
            written = written[:-1]
        return f"{self._where}, line {self._lines.get(written, 1)}"

    def _constructed(self, loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        try:
            return loader.construct_document(node)
        # What PyYAML's constructors meet in a value comes as it is: of !!bool, of a wrong date.
        except (ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise OptionError(f"{self._where}: a value is not of its type: {error!r:.80}") from None

    def _note(self, node: yaml.Node, path: Path) -> None:
        if len(path) > 20:  # an alias may hold itself
            raise OptionError(f"{self._where}: values are nested too deeply")
        if len(self._lines) > _MOST_VALUES:
            raise OptionError(
                f"{self._where}: expected at most {_MOST_VALUES} values, those of aliases included"
            )
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._note(item, (*path, str(index)))
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise OptionError(
                        f"{self._where}, line {key.start_mark.line + 1}: a key must be one word"
                    )
                if key.value in seen:
                    raise OptionError(
                        f"{self._where}, line {key.start_mark.line + 1}: {key.value!r} is there "
                        "twice"
                    )
                seen.add(key.value)
                self._lines[(*path, key.value)] = key.start_mark.line + 1
                self._note(value, (*path, key.value))
