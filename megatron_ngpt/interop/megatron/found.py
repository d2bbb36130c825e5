"""What a translation comes to: settings with their origin, and what has to be said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_ngpt.interop.megatron.shell_values import UNKNOWN


@dataclass
class Found:
    """Filled by the translation, section by section."""

    architecture: str = "ngpt"
    settings: dict[str, Any] = field(default_factory=dict)
    """Values by dotted name."""

    origins: dict[str, str] = field(default_factory=dict)
    """Which argument each came from, or why it is what it is."""

    warnings: list[str] = field(default_factory=list)
    """What trains otherwise here, and how."""

    notes: list[str] = field(default_factory=list)
    """What has no counterpart and changes nothing that is learned."""

    @property
    def is_ngpt(self) -> bool:
        """Whether the model will be normalised."""
        return self.architecture == "ngpt"

    def set(self, name: str, value: Any, origin: str) -> None:
        """A setting."""
        self.settings[name], self.origins[name] = value, origin

    def warn(self, about: str, text: str) -> None:
        """Say what trains otherwise."""
        self.warnings.append(f"{about}: {text}")

    def note(self, about: str, text: str) -> None:
        """Say what was left out although nothing that is learned changes."""
        self.notes.append(f"{about}: {text}")

    def path(self, option: str, text: str, setting: str) -> str:
        """A path that our configuration can read, or nothing and a warning.

        Variables stay in it, since the configuration expands them where the run starts.
        """
        found = UNKNOWN.search(text)
        if found and (not found[1] or found[1].isdigit()):
            way_out = f"--set {found[1]}=PATH" if found[1] else f"{setting} in the YAML"
            self.warn(option, f"{text} is known only when the script runs: give it by {way_out}")
            return ""
        if found:
            note = "expanded where the run starts, which is refused if it is not set"
            self.note(option, f"${found[1]} stays in {setting}: {note}")
        return text
