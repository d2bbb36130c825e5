"""A translation as a YAML file that says where every line is from."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from megatron_ngpt.config.yaml_file import dumped
from megatron_ngpt.interop.megatron.found import Found

_SECTIONS = ("model", "parallel", "optim", "data", "train", "checkpoint", "eval", "logging")
_PLACE = 36
"""Column of the comments."""


def as_yaml(found: Found, source: str) -> str:
    """The configuration, with what was said about it on top."""
    lines = [f"# Made from {source} by tools/from_megatron_args.py; docs/from_megatron.md"]
    lines += ["# explains it. A comment says which argument a setting is from."]
    for title, said in (("Trains otherwise here", found.warnings), ("Left out", found.notes)):
        if said:
            lines += ["#", f"# {title}:", *(line for text in said for line in _wrapped(text))]
    for section in _SECTIONS:
        if settings := list(_settings(found, section)):
            lines += ["", f"{section}:", *settings]
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> Iterator[str]:
    text = " ".join(text.split())
    yield from textwrap.wrap(
        text, 96, initial_indent="# - ", subsequent_indent="#   ", break_on_hyphens=False
    )


def _settings(found: Found, section: str) -> Iterator[str]:
    for name, value in found.settings.items():
        if not name.startswith(f"{section}."):
            continue
        comment = f"# {found.origins[name]}"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{f'  {name[len(section) + 1 :]}:':<{_PLACE}}{comment}"
            yield from (f"    - {dumped(corpus)}" for corpus in value)
        else:
            written = dumped(value).removesuffix("\n...")
            yield f"{f'  {name[len(section) + 1 :]}: {written}':<{_PLACE}} {comment}"
