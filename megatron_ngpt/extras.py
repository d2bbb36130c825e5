"""The one way an optional package is imported: by name, when its job is asked for."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str, job: str) -> ModuleType:
    """Import an optional package or say which extra brings it.

    Args:
        module: dotted module name, for example ``"gigatoken"``.
        extra: the name in ``[project.optional-dependencies]`` that installs it, or ``""`` when it
            is one of the project's own dependencies.
        job: what it is needed for, as it reads after "is needed for".

    Raises:
        ModuleNotFoundError: naming the package, the job and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as err:
        target = f"megatron-ngpt[{extra}]" if extra else module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{module} is needed for {job} but cannot be imported ({err}). "
            f"Install it with: pip install '{target}'"
        ) from err


def available(module: str) -> bool:
    """Whether an optional package can be imported here, without keeping the reason why not."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True
