"""Whether settings that a file of somebody else's gave have the types of the fields."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def misfit(section: Any) -> str:
    """Dotted name of the first field of a dataclass whose value is not of its type; "" for none."""
    kind: Any = type(section)
    for field in fields(section):
        value = getattr(section, field.name)
        if not _fits(_hints(kind)[field.name], value):
            inner = misfit(value) if is_dataclass(value) else ""
            return f"{field.name}.{inner}" if inner else field.name
    return ""


@cache
def _hints(section: Any) -> dict[str, Any]:
    return get_type_hints(section)


def _fits(kind: Any, value: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(each, value) for each in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(inner[0], part) for part in value)
    if is_dataclass(kind):
        return type(value) is kind and not misfit(value)
    return type(value) in ((int, float) if kind is float else (kind,))
