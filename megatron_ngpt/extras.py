"""The one way an optional package is imported: by name, when its job is asked for."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str, job: str, attribute: str = "") -> ModuleType:
    """Import an optional package or say which extra brings it.

    Args:
        module: dotted module name, for example ``"gigatoken"``.
        extra: the name in ``[project.optional-dependencies]`` that installs it, or ``""`` when it
            is one of the project's own dependencies.
        job: what it is needed for, as it reads after "is needed for".
        attribute: what it must have, where packages share a name.

    Raises:
        ModuleNotFoundError: naming the package, the job and the command that installs it.
    """
    try:
        return _found(module, attribute)
    # packages whose other half is missing raise RuntimeError, OSError or what they please
    except Exception as err:
        target = f"megatron-ngpt[{extra}]" if extra else module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{module} is needed for {job} but cannot be imported ({err}). "
            f"Install it with: pip install '{target}'"
        ) from err


def available(module: str, attribute: str = "") -> bool:
    """Whether an optional package can be imported here, without keeping the reason why not.

    Args:
        module: dotted module name.
        attribute: what it must have, where packages share a name.
    """
    try:
        _found(module, attribute)
    except Exception:
        return False
    return True


def _found(module: str, attribute: str) -> ModuleType:
    """The module, unless its name is all there is of it.

    Any folder on the path can be imported as an empty namespace package: one that a run has left,
    or one that holds the submodules of another package.
    """
    found = importlib.import_module(module)
    if getattr(found, "__file__", None) is None and hasattr(found, "__path__"):
        raise ImportError(f"{next(iter(found.__path__), module)} is a folder without a package")
    if attribute and not hasattr(found, attribute):
        raise ImportError(f"{found.__file__} has no {attribute}, so it is another package")
    return found
