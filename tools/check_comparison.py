"""Look README's comparison with other trainers up again in their files.

    python tools/check_comparison.py --checkouts FOLDER
    python tools/check_comparison.py --checkouts FOLDER --only ngpt OLMo-core
    python tools/check_comparison.py --write

docs/comparison.yaml holds the table, and for every cell the files and patterns that show it. FOLDER
holds a checkout of each peer under the name it has there; a missing one is named with the command
that gets it. Prints the cells whose reasons do not hold (any more), and those that give none.
Exit code 1 when a reason does not hold or README's table is not the file's, 2 when a checkout is
missing. ``--write`` makes README's table anew from the file.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_ngpt.console import tool

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- made by tools/check_comparison.py from docs/comparison.yaml -->"
END = "<!-- end of the comparison -->"


@dataclass(frozen=True)
class Reason:
    """A pattern that is in at least one of a checkout's files, or in none of them."""

    peer: str
    files: str
    pattern: str
    present: bool

    @classmethod
    def read(cls, peer: str, entry: dict[str, str]) -> Reason:
        """From an entry with ``files`` and one of ``has`` and ``lacks``."""
        present = "has" in entry
        assert present != ("lacks" in entry), f"has or lacks, not both: {entry}"
        return cls(peer, entry["files"], entry["has" if present else "lacks"], present)

    def fails(self, folder: Path) -> str:
        """Why it does not hold in a checkout; empty when it does."""
        paths = [path for path in sorted(folder.glob(self.files)) if path.is_file()]
        if not paths:
            return f"{self.peer} has no {self.files}"
        pattern = re.compile(self.pattern, 0 if self.present else re.IGNORECASE)
        texts = ((path, path.read_text(encoding="utf-8", errors="replace")) for path in paths)
        found = next((path for path, text in texts if pattern.search(text)), None)
        if self.present and found is None:
            return f"{self.peer}: {self.files} has no {self.pattern}"
        if not self.present and found is not None:
            return f"{self.peer}: {found.relative_to(folder)} has {self.pattern}"
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Check cells and README, or write README."""
    options = _parser().parse_args(argv)
    readme, comparison = ROOT / "README.md", read_comparison()
    if options.write:
        readme.write_text(with_table(readme.read_text(), comparison))
        return 0
    wanted = options.only or ["here", *comparison["peers"]]
    folders = {name: options.checkouts / name for name in wanted} | {"here": ROOT}
    missing = [name for name, folder in folders.items() if not folder.is_dir()]
    for name in missing:
        print(f"no {folders[name]}; in that folder: {comparison['peers'][name]['get']}")
    if missing:
        return 2
    faults = [*wrong_versions(comparison, folders), *wrong_cells(comparison, folders)]
    if with_table(readme.read_text(), comparison) != readme.read_text():
        faults.append("README's table is another: python tools/check_comparison.py --write")
    for fault in faults:
        print(fault)
    held = sum(reason.peer in folders for _, reason in reasons(comparison))
    print(f"{held} reasons looked up in {', '.join(folders)}: {len(faults)} faults")
    return int(bool(faults))


def read_comparison() -> dict[str, Any]:
    """docs/comparison.yaml, every scalar a string: a cell may say yes or no."""
    comparison: dict[str, Any] = yaml.load(
        (ROOT / "docs/comparison.yaml").read_text(encoding="utf-8"), yaml.BaseLoader
    )
    return comparison


def reasons(comparison: dict[str, Any]) -> Iterator[tuple[str, Reason]]:
    """(cell, reason) of all cells that say more than "-"."""
    for row in comparison["rows"]:
        for column in comparison["columns"]:
            cell = row[column]
            assert cell["says"] == "-" or cell.get("because"), f"no reason: {row['row']}, {column}"
            for entry in cell.get("because", ()):
                yield f"{row['row']}, {column}: {cell['says']}", Reason.read(entry["in"], entry)


def wrong_cells(comparison: dict[str, Any], folders: dict[str, Path]) -> Iterator[str]:
    """A line for each reason that does not hold in the checkouts at hand."""
    for cell, reason in reasons(comparison):
        if reason.peer in folders and (fault := reason.fails(folders[reason.peer])):
            yield f"{cell}\n    {fault}"


def wrong_versions(comparison: dict[str, Any], folders: dict[str, Path]) -> Iterator[str]:
    """A line for each checkout that is not the version that the table names."""
    for name, peer in comparison["peers"].items():
        if name not in folders:
            continue
        if "version" in peer and (fault := Reason.read(name, peer["version"]).fails(folders[name])):
            yield f"another version: {fault}"
        if "commit" in peer and (head := _head(folders[name])) != peer["commit"]:
            yield f"{name} is at {head or 'no commit'}, not at {peer['commit']}"


def with_table(readme: str, comparison: dict[str, Any]) -> str:
    """README with the table between its two marks made anew."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "README has no mark where the table begins"
    assert end, "README has no mark where the table ends"
    columns = comparison["columns"]
    lines = ["| | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 1) + "|"]
    for row in comparison["rows"]:
        cells = [row["row"], *(row[name]["says"] for name in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return before + begin + "\n\n" + "\n".join(lines) + "\n\n" + end + after


def _head(folder: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--checkouts", type=Path, default=Path(".peers"), metavar="FOLDER", help="[.peers]"
    )
    parser.add_argument("--only", nargs="+", metavar="PEER", help="these checkouts alone")
    parser.add_argument("--write", action="store_true", help="make README's table anew")
    return parser


if __name__ == "__main__":
    raise SystemExit(tool(main))
