"""What a batch script does when its job has ended, told by an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Action = Literal["requeue", "done", "give up"]
EXIT_CODES: dict[Action, int] = {"requeue": 0, "done": 10, "give up": 11}


@dataclass(frozen=True)
class Decision:
    """What comes next."""

    action: Action
    why: str

    def tell(self) -> int:
        """Print it; the exit code that stands for it."""
        print(f"{self.action}: {self.why}", flush=True)
        return EXIT_CODES[self.action]
