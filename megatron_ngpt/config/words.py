"""What people write for numbers and paths, in the words that the configuration's types ask for.

Config files and command lines go through here before jsonargparse sees them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args, get_type_hints

from megatron_ngpt.config.paths import as_written, expanded
from megatron_ngpt.config.tree import Config
from megatron_ngpt.config.yaml_file import dumped, leading_zero, parsed

PATHS = frozenset(
    {
        *("data.train", "data.train.prefix", "data.valid", "data.valid.prefix"),
        *("data.stages.train", "data.stages.train.prefix", "data.tokenizer", "data.cache_dir"),
        *("checkpoint.dir", "engine.deepspeed_overrides", "logging.dir"),
    }
)
LENGTHS = frozenset(
    {
        *("data.seq_len", "data.shuffle_unit", "data.stages.tokens", "data.stages.seq_len"),
        *("train.mlp_tile", "train.loss_chunk", "model.rope_original"),
    }
)
"""Settings in tokens, which may have a unit."""

_UNITS = {"k": 10, "m": 20, "g": 30}


def tokens_of(text: str) -> int:
    """Tokens of ``512``, ``4k`` (4096) or ``2M`` (2097152), as powers of two.

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"(\d+)([kmg]?)", text.strip().lower())
    if not found or int(found[1]) < 1:
        raise ValueError(f"{text}: give a number of tokens such as 512, 2k or 1m")
    return int(found[1]) << _UNITS.get(found[2], 0)


@cache
def _of_type(wanted: type) -> frozenset[str]:
    """Dotted names of all settings of a type, those inside of lists included."""
    return frozenset(name for name, kind in _settings(Config, "") if kind is wanted)


def _settings(section: type, at: str) -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(section).items():
        yield at + name, kind
        for inner in _inside(kind):
            yield from _settings(inner, f"{at}{name}.")


def _inside(kind: Any) -> Iterator[type]:
    """The dataclasses that a type is made of."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield kind
    for argument in get_args(kind):
        yield from _inside(argument)


def understood(value: Any, name: str = "") -> Any:
    """A value, or a section of them, as it is meant.

    Args:
        value: what YAML holds.
        name: dotted, of the setting; lists add nothing to it.

    Raises:
        ValueError: naming the setting and the way out.
    """
    if isinstance(value, dict):
        return {
            key: understood(v, f"{name}.{key}" if name else str(key)) for key, v in value.items()
        }
    if isinstance(value, list):
        return [understood(item, name) for item in value]
    try:
        if name in PATHS and isinstance(value, str) and not value.startswith(("[", "{")):
            return expanded(value)
        if name in LENGTHS and isinstance(value, str) and value[-1:].isalpha():
            return tokens_of(value)
    except ValueError as err:
        raise ValueError(f"{name} = {err}") from None
    if name in _of_type(int) and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e3 or 100.0
    if name in _of_type(str) and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # minutes, or a name in digits
    return value


def command_line(argv: Sequence[str]) -> list[str]:
    """Command-line words, every count and every path as it is meant.

    Raises:
        ValueError: naming the setting and the way out.
    """
    words, given = [], list(argv)
    while given:
        word = given.pop(0)
        option, equals, value = word.partition("=")
        name = option[2:]
        known = name in PATHS | _of_type(int) or name in ("config", "data.stages")
        if not (word.startswith("--") and known and (equals or given)):
            words.append(word)
            continue
        words.append(f"{option}={_value(name, value if equals else given.pop(0))}")
    return words


def _value(name: str, text: str) -> str:
    """A value as jsonargparse reads it."""
    if name == "config":
        return expanded(text)
    if text.startswith(("[", "{")):
        return dumped(understood(parsed(text), name))
    if name in PATHS:
        return str(understood(text, name))
    if re.fullmatch(r"[-+]?0\d+", text):
        raise ValueError(f"{name} = {leading_zero(text)}")
    found = understood(parsed(text), name)
    return str(found) if isinstance(found, int) and not isinstance(found, bool) else text


def loaded(text: str) -> Any:
    """What a config file, or a single value, holds; sections of the configuration as meant."""
    found = parsed(text)
    if isinstance(found, dict) and set(found) <= set(Config.__dataclass_fields__):
        return understood(found)
    return found


def writable(value: Any, name: str = "") -> Any:
    """What :func:`understood` reads back as this value."""
    if isinstance(value, dict):
        return {key: writable(v, f"{name}.{key}" if name else key) for key, v in value.items()}
    if isinstance(value, list):
        return [writable(item, name) for item in value]
    return as_written(value) if name in PATHS and isinstance(value, str) else value
