"""What the words of a script stand for, where its variables tell; the rest is left as written."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

Values = dict[str, str | list[str]]
"""Variables by name; arrays are lists."""

_REFERENCE = re.compile(
    r"\$(?:(?P<name>[A-Za-z_]\w*|[0-9@*#?$!])|\{(?P<braced>[A-Za-z_]\w*|[0-9]+)"
    r"(?P<array>\[[@*]\])?(?::?[-=](?P<default>.*))?\})",
    re.S,
)
_NESTED = r"\$\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\$\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_PIECE = re.compile(
    rf"'(?P<single>[^']*)'|\"(?P<double>(?:{_NESTED}|\\.|[^\"\\])*)\"|(?P<bare>{_NESTED})", re.S
)
UNKNOWN = re.compile(r"\$\{?([A-Za-z_]\w*|[0-9]+)|(\$\(|`)")
"""A variable that nothing sets, or the output of a program."""

_ARITHMETIC: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod,
    ast.Div: operator.floordiv, ast.FloorDiv: operator.floordiv,
    ast.Gt: operator.gt, ast.Lt: operator.lt, ast.GtE: operator.ge, ast.LtE: operator.le,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


def fields(word: str, values: Mapping[str, str | list[str]]) -> list[str]:
    """The words that one word becomes; unquoted variables are split at blanks."""
    found: list[str] = [""]
    whole = False  # an empty word counts if it was quoted
    for piece, quoted in _pieces(word):
        parts = _expanded(piece, values) if quoted != "'" else [piece]
        if quoted:
            whole = True
            found[-1] += parts[0] if parts else ""
            found += parts[1:]
            continue
        split = [part for text in parts for part in _split(text)]
        if split:
            found[-1] += split[0]
            found += split[1:]
    return [one for one in found if one or whole]


def joined(word: str, values: Mapping[str, str | list[str]]) -> str:
    """One text, as behind ``NAME=``: nothing is split."""
    return "".join(
        piece if quoted == "'" else " ".join(_expanded(piece, values))
        for piece, quoted in _pieces(word)
    )


def _split(text: str) -> list[str]:
    """At blanks, but not inside of what is left as ``$(...)`` or ``${...}``."""
    return re.findall(r"(?:\$\([^()]*(?:\([^()]*\)[^()]*)*\)|\$\{[^}]*\}|`[^`]*`|\S)+", text)


def _pieces(word: str) -> list[tuple[str, str]]:
    """Parts of a word and how each is quoted: by nothing, ``'`` or ``"``."""
    found, at = [], 0
    for match in _PIECE.finditer(word):
        if match.start() > at:
            found.append((_unescaped(word[at : match.start()]), ""))
        if match["bare"] is not None:
            found.append((match["bare"], ""))
        elif match["single"] is not None:
            found.append((match["single"], "'"))
        else:
            text = match["double"].replace("\\\n", " ")
            found.append((re.sub(r"\\([\"\\`])", r"\1", text), '"'))
        at = match.end()
    return [*found, (_unescaped(word[at:]), "")] if at < len(word) else found


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.S)


def _expanded(text: str, values: Mapping[str, str | list[str]]) -> list[str]:
    """A text with its variables in place; an array alone becomes several."""
    alone = _REFERENCE.fullmatch(text)
    if alone and isinstance(known := values.get(alone["name"] or alone["braced"] or ""), list):
        return list(known) if alone["array"] else known[:1]
    text = _arithmetic_in(text, values)
    found, at = "", 0
    while at < len(text):
        end = _reference_end(text, at)
        found += _value(text[at:end], values) if end > at else text[at]
        at = max(end, at + 1)
    return [found]


def _reference_end(text: str, at: int) -> int:
    """Where the ``$NAME`` or ``${...}`` that begins here ends; at itself when none does."""
    if text.startswith("${", at):
        depth = 0
        for end in range(at + 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return end + 1
    found = re.compile(r"\$(?:[A-Za-z_]\w*|[0-9@*#?$!])").match(text, at)
    return found.end() if found else at


def _value(reference: str, values: Mapping[str, str | list[str]]) -> str:
    found = _REFERENCE.fullmatch(reference)
    name = (found["name"] or found["braced"]) if found else ""
    if not found or name not in values:
        if found and found["default"] is not None:
            return joined(found["default"], values)
        if not found or not name:
            return reference
        return "" if found["array"] else f"${{{name}}}"
    value = values[name]
    if isinstance(value, list):
        return " ".join(value) if found["array"] else "".join(value[:1])
    if not value and found["default"]:
        return joined(found["default"], values)
    return value


def _arithmetic_in(text: str, values: Mapping[str, str | list[str]]) -> str:
    """A text with every ``$((...))`` that can be reckoned in place."""
    while (at := text.find("$((")) >= 0:
        depth, end = 0, at + 1
        while end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
            if depth == 0:
                break
        result = reckoned(text[at + 3 : end - 2], values)
        if result is None:
            before, after = text[:end], _arithmetic_in(text[end:], values)
            return before + after
        text = f"{text[:at]}{result}{text[end:]}"
    return text


def reckoned(expression: str, values: Mapping[str, str | list[str]]) -> int | None:
    """Value of shell arithmetic; None where something in it is not known."""

    def inserted(found: re.Match[str]) -> str:
        value = values.get(found[1], found[1])
        return f"({value})" if isinstance(value, str) else found[0]

    text = expression
    for _ in range(8):  # variables may hold expressions
        text = re.sub(r"\$?\{?\b([A-Za-z_]\w*)\b\}?", inserted, text)
    try:
        return _reckoned(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return None


def _reckoned(node: Any) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_reckoned(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_reckoned(node.left), _reckoned(node.right))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _ARITHMETIC:
        compare = _ARITHMETIC[type(node.ops[0])]
        return int(compare(_reckoned(node.left), _reckoned(node.comparators[0])))
    raise ValueError("no arithmetic on whole numbers")


_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
    "-eq": operator.eq, "-ne": operator.ne, "-gt": operator.gt, "-ge": operator.ge,
    "-lt": operator.lt, "-le": operator.le,
}  # fmt: skip


def holds(words: list[str], values: Mapping[str, str | list[str]]) -> bool | None:
    """Whether a test such as ``[ "$a" = b ]`` is true; None where that is not known."""
    inner = [w for w in words if w not in ("[", "]", "[[", "]]", "test")]
    if inner[:1] == ["!"]:
        found = holds(inner[1:], values)
        return None if found is None else not found
    if inner[:1] in (["-z"], ["-n"]):
        text = joined(inner[1], values) if len(inner) > 1 else ""
        empty = not text or bool(_REFERENCE.fullmatch(text))  # set nowhere
        return empty == (inner[0] == "-z")
    if len(inner) != 3 or inner[1] not in _TESTS:
        return None
    left, right = (joined(inner[i], values) for i in (0, 2))
    if UNKNOWN.search(left + right):
        return None
    if inner[1].startswith("-"):
        numbers = reckoned(left, values), reckoned(right, values)
        return None if None in numbers else _TESTS[inner[1]](*numbers)
    return _TESTS[inner[1]](left, right)
