"""Paths as shells know them: ``~``, ``$VAR``, ``${VAR}`` and ``${VAR:-default}``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_REFERENCE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_]\w*)"
    r"|\{(?P<braced>[A-Za-z_]\w*)(?P<default>:-(?P<value>[^{}]*))?\})"
)


def expanded(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The path that is meant; ``$$`` is a dollar sign.

    Raises:
        ValueError: a variable is not set and has no default, or a ``$`` begins none.
    """
    env = os.environ if environ is None else environ

    def value_of(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        name = found["name"] or found["braced"]
        value = env.get(name, "")
        if value or (found["default"] and found["value"]):
            return value or found["value"]
        raise ValueError(
            f"{text}: {name} is not set: export it, or write ${{{name}:-PATH}} for a default"
        )

    if "$" in _REFERENCE.sub("", text):
        raise ValueError(
            f"{text}: write $VAR, ${{VAR}} or ${{VAR:-PATH}}, and $$ for a dollar sign"
        )
    return os.path.expanduser(_REFERENCE.sub(value_of, text))


def as_written(path: str) -> str:
    """What :func:`expanded` makes this path of, for a file that is read back."""
    path = path.replace("$", "$$")
    return f"./{path}" if path.startswith("~") else path
