"""The words of a command line that ask for a dry run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def dry_run_options(argv: Sequence[str]) -> tuple[int | None, list[str]]:
    """Take ``--dry_run [--world_size N]`` out of a command line, so that no configuration saves it.

    Returns:
        The wanted number of ranks, 0 when not said, None when this is no dry run; the other words.

    Raises:
        ValueError: N is no positive number.
    """
    if "--dry_run" not in argv:
        return None, list(argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--world_size", nargs="?", const="")
    options, rest = parser.parse_known_args(argv)
    wanted = options.world_size
    if wanted is None:
        return 0, rest
    if not wanted.isdigit() or int(wanted) < 1:
        raise ValueError(f"--world_size {wanted}: must be a positive number of processes")
    return int(wanted), rest
