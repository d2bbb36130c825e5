"""From options of a command line to a configuration that has been checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ngpt.config import check, config_from
from megatron_ngpt.interop.megatron.arguments import Arguments, from_words, from_yaml
from megatron_ngpt.interop.megatron.found import Found
from megatron_ngpt.interop.megatron.model import translate_model
from megatron_ngpt.interop.megatron.optim import translate_optim, translate_run_length
from megatron_ngpt.interop.megatron.reasons import reason
from megatron_ngpt.interop.megatron.rest import (
    translate_data,
    translate_files,
    translate_memory,
    translate_parallel,
)
from megatron_ngpt.interop.megatron.shell import read_script


def read_arguments(source: Path, given: Mapping[str, str] | None = None) -> Arguments:
    """Options of a launch script, or of a YAML file (by its name).

    Args:
        source: the file.
        given: variables of a script that are known from outside.

    Raises:
        ValueError: it is no such file.
        OSError: it cannot be read.
    """
    text = source.read_text(encoding="utf-8")
    try:
        if source.suffix in (".yaml", ".yml"):
            return from_yaml(text)
        script = read_script(text, given)
    except ValueError as err:
        raise ValueError(f"{source}: {err}") from err
    args = from_words(script.words)
    args.remarks = [*script.remarks, *args.remarks]
    return args


def translate(args: Arguments, architecture: str = "ngpt") -> Found:
    """Settings, and what has to be said about every argument that became none.

    Raises:
        ValueError: the arguments are no pretraining of a GPT, or make no configuration.
    """
    found = Found(architecture)
    found.notes += args.remarks
    translate_model(args, found)
    translate_run_length(args, found)
    translate_optim(args, found)
    translate_parallel(args, found)
    translate_data(args, found)
    translate_memory(args, found)
    translate_files(args, found)
    for name in args.unseen():
        changes, why = reason(name)
        (found.warn if changes else found.note)(f"--{name}", why)
    _name_the_rest(args, found)
    _check(found.settings)
    return found


def _name_the_rest(args: Arguments, found: Found) -> None:
    """What is the same here, or went into a setting that another argument gave its name."""
    said = " ".join([*found.origins.values(), *found.warnings, *found.notes])
    named = set(re.findall(r"--([A-Za-z][\w-]*)", said))
    if rest := [f"--{name}" for name in args.values if name not in named]:
        found.note("as there, or part of settings that are named after others", ", ".join(rest))


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse what our parser would refuse."""
    try:
        check(config_from(settings))
    except ValueError as err:
        raise ValueError(f"these arguments make no configuration of this project: {err}") from err
