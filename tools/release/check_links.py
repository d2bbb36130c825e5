"""Every relative link of every page leads to a file: python tools/release/check_links.py"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
_CODE = re.compile(r"```.*?```|`[^`]*`", re.S)


def broken(root: Path) -> list[str]:
    """Links to files that are not there, as ``page: link``."""
    found = []
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    for page in sorted(pages):
        for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
            outside = re.match(r"[a-z]+:", target)
            if not outside and not (page.parent / target).exists():
                found.append(f"{page.relative_to(root)}: {target}")
    return found


def main() -> int:
    """1 when a link leads nowhere."""
    found = broken(CHECKOUT)
    for line in found:
        print(f"leads nowhere: {line}", file=sys.stderr)
    print(f"4  docs: {len(found)} links lead nowhere")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
