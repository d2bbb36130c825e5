"""Why a record cannot be used."""

from __future__ import annotations


class UnusableError(Exception):
    """Reason and detail of a refusal, and the byte of the text where it is known."""

    def __init__(self, reason: str, detail: str = "", at: int = 0) -> None:
        super().__init__(reason, detail)
        self.at = at
