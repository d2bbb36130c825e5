"""YAML in which a slip of the pen is an error: a key given twice, a number read otherwise."""

from __future__ import annotations

import re
from typing import Any

import yaml

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_DEEPEST, _MOST = 60, 100_000
"""Nested values, and values in all, that a file may hold."""
_MERGE, _DATE = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:timestamp"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML reads YAML 1.1, in which 0123 is 83, 3:50 is 230 and 1e-3 is a text."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML does it, but no key may stand twice."""
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {line}: a list or a section stands where a name must")
            if key.value in seen:
                raise ValueError(
                    f"line {line}: {key.value} was already given in line {seen[key.value]}: "
                    "leave one of them out"
                )
            if key.tag != _MERGE:
                seen[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_int(self, node: Any) -> int:
        """A decimal or hexadecimal number."""
        text = node.value.replace("_", "")
        if re.fullmatch(r"[-+]?0\d+", text):
            raise ValueError(f"line {node.start_mark.line + 1}: {leading_zero(node.value)}")
        return int(text, 16 if "x" in text.lower() else 10)


def leading_zero(text: str) -> str:
    """What is wrong with a number like 0123."""
    return f"{text}: a leading zero means base 8 to some and nothing to others: leave it out"


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in (_INT, _FLOAT, _DATE)]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT, re.compile(r"[-+]?(?:[0-9][0-9_]*|0[xX][0-9a-fA-F_]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(_INT, _Loader.construct_int)


def parsed(text: str) -> Any:
    """What a piece of YAML says.

    Raises:
        ValueError: it is no YAML, or not clear.
    """
    try:
        _check_size(text)
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}parsing failed: {getattr(err, 'problem', None) or err}") from err


def _check_size(text: str) -> None:
    """Refuse what is deep, refers to itself, or would be vast once all its aliases are written out.

    Event after event, which needs no recursion: a few lines of aliases of aliases may stand for
    more values than there is memory.
    """
    sizes: dict[str, int] = {}
    opened: list[tuple[str, int]] = [("", 0)]  # anchor and values so far of what is not yet closed
    for event in yaml.parse(text, _Loader):
        anchor, size = getattr(event, "anchor", None) or "", 1
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1))
            if len(opened) > _DEEPEST:
                raise ValueError(f"{_where(event)}nested too deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = "", sizes.get(anchor, 1)
            if any(name == event.anchor for name, _ in opened):
                raise ValueError(f"{_where(event)}*{event.anchor} is part of what it stands for")
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor:
            sizes[anchor] = size
        opened[-1] = (opened[-1][0], opened[-1][1] + size)
        if opened[-1][1] > _MOST:
            raise ValueError(f"{_where(event)}over {_MOST:,} values, all aliases written out")


def _where(event: Any) -> str:
    return f"line {event.start_mark.line + 1}: "


class _Dumper(yaml.SafeDumper):
    """Quotes what :class:`_Loader` would not read as a text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dumped(value: Any) -> str:
    """A value in one line that :func:`parsed` reads back."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=float("inf")).strip()
