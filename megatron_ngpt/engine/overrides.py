"""What of engine.deepspeed_overrides DeepSpeed does not know, or cannot do here.

DeepSpeed passes over keys that it does not ask for, so a misspelt one would change nothing and be
found by nobody.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, KeysView
from contextlib import contextmanager
from typing import Any

_TROUBLE = (
    *(AssertionError, AttributeError, ImportError, LookupError, NotImplementedError),
    *(TypeError, ValueError),
)


@contextmanager
def overridden(deepspeed: Any, settings: dict[str, Any], path: str) -> Iterator[None]:
    """Inside, an engine is built with these settings, into which the file at ``path`` was merged.

    Args:
        deepspeed: the package.
        settings: DeepSpeed's configuration.
        path: engine.deepspeed_overrides; with "" nothing is checked.

    Raises:
        ValueError: DeepSpeed asks for no such key, or cannot build the engine with them.
    """
    if not path:
        yield
        return
    asked = _Asked(settings)
    try:
        deepspeed.DeepSpeedConfig(asked)
        unknown = list(asked.unknown())
        if not unknown:
            yield
    except _TROUBLE as err:
        why = " ".join(str(err).split())[:300] or "no reason given"
        raise ValueError(
            f"engine.deepspeed_overrides = {path}: DeepSpeed {deepspeed.__version__} cannot build "
            f"this engine with it: {type(err).__name__}: {why}"
        ) from err
    if unknown:
        raise ValueError(
            f"engine.deepspeed_overrides = {path}: DeepSpeed {deepspeed.__version__} knows no "
            f"{', '.join(unknown)}: remove or correct them"
        )


class _Asked(dict):
    """Settings that note which of them are looked for.

    Not those in sections: DeepSpeed unpacks most of them into models that refuse what they do not
    know.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.asked: set[str] = set()

    def unknown(self) -> Iterator[str]:
        """Keys that nobody looked for."""
        for key in self:
            if key not in self.asked:
                close = difflib.get_close_matches(key, self.asked, 1)
                yield key + "".join(f" (did you mean {name}?)" for name in close)

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        self.asked.add(key)
        return super().get(key, *default)

    def __getitem__(self, key: Any) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> KeysView:  # type: ignore[override]
        """A view whose look-ups count."""
        return KeysView(self)

    def __copy__(self) -> _Asked:
        return self
