"""Command line and YAML to a :class:`Config`, through jsonargparse."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_loader, set_parsing_settings

from megatron_ngpt.config.checks import check
from megatron_ngpt.config.hints import hint
from megatron_ngpt.config.model import ModelConfig
from megatron_ngpt.config.paths import as_written
from megatron_ngpt.config.run import ParallelConfig
from megatron_ngpt.config.tree import Config
from megatron_ngpt.config.words import command_line, loaded, writable


class _Parser(ArgumentParser):
    """Says which file is wrong, and which key an unknown one may have meant."""

    reading = ""
    """The config file that is being read."""

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a config file."""
        self.reading = f" {cfg_path}"
        return super().parse_path(cfg_path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [o[2:] for a in self._actions for o in a.option_strings if "." in o]
        message = message.replace("Problems parsing config:", f"--config{self.reading}:")
        if "Unexpected config: " in message:
            message = (
                f"--config{self.reading}: holds no settings: give it sections such as model and "
                "train, or leave it out for the defaults"
            )
        super().error(message + hint(message, options), ex)


def parser() -> ArgumentParser:
    """The parser behind ``--help``: one option per field, its docstring as help text."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", loaded, exceptions=(ValueError,))
    program = Path(sys.argv[0]).name
    made = _Parser(
        prog=program if program.endswith(".py") else "pretrain_ngpt.py",
        description=Config.__doc__,
        usage="%(prog)s --config FILE.yaml [--section.field VALUE ...]",
        allow_abbrev=False,
    )
    made.add_argument(
        "--config",
        action="config",
        help="YAML file; later options win over it. Paths in it, as everywhere, are relative to "
        "the folder in which the program is started",
    )
    made.add_class_arguments(Config, as_group=False)
    made.set_defaults(_as_written(ModelConfig, "model."))
    made.set_defaults(_as_written(ParallelConfig, "parallel."))
    return made


def _as_written(section: type, at: str) -> dict[str, Any]:
    """Defaults of a section by dotted name, as its class states them.

    An instance of ModelConfig has its zeros filled in for the default width; as defaults they would
    stay behind when another width is asked for.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        if callable(field.default_factory):
            values = dataclasses.asdict(field.default_factory())
            found |= {f"{at}{field.name}.{name}": value for name, value in values.items()}
        else:
            found[at + field.name] = field.default
    return found


def parse_config(argv: Sequence[str]) -> Config:
    """Configuration from command-line words such as ``--config F.yaml --train.steps 100``.

    Unknown keys, wrong types and impossible combinations end the program with exit code 2 and a
    message that names key, value and way out.
    """
    command = parser()
    try:
        namespace = command.parse_args(command_line(argv))
    except ValueError as err:
        command.error(str(err))
    for problem in _gaps(namespace.as_dict(), Config().to_dict()):
        command.error(problem)
    values = command.instantiate_classes(namespace)
    config = Config(**{name: values[name] for name in Config.__dataclass_fields__})
    try:
        check(config)
    except ValueError as err:
        command.error(str(err))
    return config


def _gaps(values: Mapping[str, Any], shape: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Keys without a value, and values where a section belongs: YAML can hold both."""
    for key, expected in shape.items():
        value, name = values[key], at + key
        if not isinstance(expected, dict):
            if value is None:
                yield f"{name} has no value: give it one or leave the line out"
        elif isinstance(value, dict):
            yield from _gaps(value, expected, f"{name}.")
        else:
            yield f"{name} = {value}: is a section, not a value: write {name}.FIELD"


def load_config(path: str | Path, *overrides: str) -> Config:
    """Configuration from a saved YAML file, for example ``RUN_DIR/config.yaml``."""
    return parse_config(["--config", as_written(str(path)), *overrides])


def config_from(settings: Mapping[str, Any]) -> Config:
    """Configuration from settings by dotted name, as a run's ledger keeps them.

    One that it lacks is at its default, which is what runs did before there was the setting; what
    is unknown here is passed over.

    Raises:
        ValueError: a value is of no use.
    """
    known = _nested(settings, Config().to_dict())
    command = parser()
    command.exit_on_error = False
    try:
        values = command.instantiate_classes(command.parse_object(known))
    except (ArgumentError, TypeError) as err:
        raise ValueError(f"settings of another version? {err}") from err
    return Config(**{name: values[name] for name in Config.__dataclass_fields__})


def _nested(settings: Mapping[str, Any], shape: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Those of a section that are known and given."""
    found: dict[str, Any] = {}
    for name, default in shape.items():
        if isinstance(default, dict):
            found[name] = _nested(settings, default, f"{at}{name}.")
        elif at + name in settings:
            found[name] = settings[at + name]
    return found


def save_config(config: Config, path: str | Path) -> None:
    """Write every field, derived ones included, as YAML that :func:`load_config` reads back."""
    plain = writable(json.loads(json.dumps(config.to_dict())))  # tuples become lists
    Path(path).write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
