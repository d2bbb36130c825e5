"""What a Megatron command line asks for: options by name, and who has looked at them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_ngpt.config.yaml_file import parsed
from megatron_ngpt.interop.megatron.shell_values import UNKNOWN

_OPTION = re.compile(r"--([A-Za-z][\w.-]*)(?:=(.*))?", re.S)
_FALSE = ("false", "no", "off", "null", "none")


class Arguments:
    """Options by name, without dashes in front and with dashes inside."""

    def __init__(self) -> None:
        self.values: dict[str, list[str]] = {}
        self.launcher: dict[str, list[str]] = {}
        """What stands before the training script."""
        self.remarks: list[str] = []
        self.seen: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def unseen(self) -> Iterator[str]:
        """Names of what nobody has asked for, in order."""
        return (name for name in self.values if name not in self.seen)

    def words(self, *names: str) -> list[str]:
        """Values of the first of these options that is given."""
        self.seen.update(names)
        return next((self.values[name] for name in names if name in self.values), [])

    def text(self, *names: str, default: str = "") -> str:
        """The only value of an option."""
        found = self.words(*names)
        return found[-1] if found else default

    def flag(self, *names: str) -> bool:
        """Whether an option that takes no value is given."""
        self.seen.update(names)
        return any(name in self.values for name in names)

    def number(self, *names: str, default: float = 0.0) -> float:
        """A number.

        Raises:
            ValueError: it is none, or a variable that nothing sets.
        """
        text = self.text(*names)
        try:
            return float(text.replace("_", "")) if text else default
        except ValueError:
            raise ValueError(_no_number(self.name_of(*names), text)) from None

    def count(self, *names: str, default: int = 0) -> int:
        """A whole number.

        Raises:
            ValueError: it is none, or a variable that nothing sets.
        """
        value = self.number(*names, default=default)
        if value != int(value):
            raise ValueError(f"{self.name_of(*names)} = {value:g}: must be a whole number")
        return int(value)

    def name_of(self, *names: str) -> str:
        """``--name`` of the first that is given, for messages."""
        return f"--{next((name for name in names if name in self.values), names[0])}"


def _no_number(option: str, text: str) -> str:
    found = UNKNOWN.search(text)
    if not found:
        return f"{option} = {text}: is no number"
    if found[1]:
        return f"{option} = {text}: nothing sets {found[1]}; give it by --set {found[1]}=VALUE"
    return f"{option} = {text}: the output of a program is not known; write a number in its place"


def from_words(words: Sequence[str]) -> Arguments:
    """Options of a command line; what stands before a ``.py`` file is the launcher's."""
    script = next((i for i, word in enumerate(words) if re.search(r"\.py['\"]?$", word)), -1)
    found = Arguments()
    _read(words[: max(script, 0)], found.launcher, found.remarks)
    stray = _read(words[script + 1 :], found.values, found.remarks)
    if stray:
        found.remarks.append(f"no option: {' '.join(stray)}")
    return found


def _read(words: Sequence[str], into: dict[str, list[str]], remarks: list[str]) -> list[str]:
    """Sort words into options; those before the first option are returned."""
    name, stray = "", []
    for word in words:
        option = _OPTION.fullmatch(word)
        if option:
            name = option[1].replace("_", "-")
            if name in into:
                remarks.append(f"--{name} is given more than once: the last one counts")
            into[name] = [] if option[2] is None else [option[2].strip("'\"")]
        elif name:
            into[name].append(word.strip("'\""))
        elif not word.startswith("-"):
            stray.append(word)
    for name in [n for n, v in into.items() if len(v) == 1 and v[0].lower() in _FALSE[:3]]:
        del into[name]  # --swiglu false, as some wrappers write it
    return stray


def from_yaml(text: str) -> Arguments:
    """Options of a YAML file: ``--num-layers: 12``, ``num_layers: 12``, in sections or not.

    Raises:
        ValueError: it is no YAML, or holds no options.
    """
    held = parsed(text)
    if not isinstance(held, dict):
        raise ValueError("holds no options by name")
    found = Arguments()
    section = next((v for k, v in held.items() if k in ("MODEL_ARGS", "ARGS")), held)
    for name, value in _leaves(section):
        key = name.removeprefix("--").replace("_", "-")
        if isinstance(value, bool) or value is None:
            if value:
                found.values[key] = []
            elif value is False:
                _turned_off(key, found)
        elif isinstance(value, list):
            found.values[key] = [str(item) for item in value]
        else:
            found.values[key] = str(value).split()
    if section is not held:
        others = ", ".join(name for name, value in held.items() if value is not section)
        found.remarks.append(f"not options of the training script, and not read: {others}")
    return found


_TURNED_OFF = {"add-bias-linear": "disable-bias-linear", "add-position-embedding": ""}


def _turned_off(key: str, found: Arguments) -> None:
    """False says that an option is not given, or that another is."""
    if _TURNED_OFF.get(key):
        found.values[_TURNED_OFF[key]] = []


def _leaves(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield str(name), value
