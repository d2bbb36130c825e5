"""Command line and YAML to a :class:`Config`, through jsonargparse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from megatron_ngpt.config.checks import check
from megatron_ngpt.config.tree import Config


def parser() -> ArgumentParser:
    """The parser behind ``--help``: one option per field, its docstring as help text."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    made = ArgumentParser(
        description=Config.__doc__, usage="%(prog)s --config FILE.yaml [--section.field VALUE ...]"
    )
    made.add_argument("--config", action="config", help="YAML file; later options win over it")
    made.add_class_arguments(Config, as_group=False)
    return made


def parse_config(argv: Sequence[str]) -> Config:
    """Configuration from command-line words such as ``--config F.yaml --train.steps 100``.

    Unknown keys, wrong types and impossible combinations end the program with exit code 2 and a
    message that names key, value and way out.
    """
    command = parser()
    namespace = command.parse_args(list(argv))
    values = command.instantiate_classes(namespace)
    config = Config(**{name: values[name] for name in Config.__dataclass_fields__})
    try:
        check(config)
    except ValueError as err:
        command.error(str(err))
    return config


def load_config(path: str | Path, *overrides: str) -> Config:
    """Configuration from a saved YAML file, for example ``RUN_DIR/config.yaml``."""
    return parse_config(["--config", str(path), *overrides])


def save_config(config: Config, path: str | Path) -> None:
    """Write every field, derived ones included, as YAML that :func:`load_config` reads back."""
    plain = config.to_dict()
    plain["optim"]["betas"] = list(plain["optim"]["betas"])
    Path(path).write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
