"""Time of a step by room, several profiles side by side, as a picture.

    OMP_NUM_THREADS=2 python tools/profile_step.py --config F.yaml --json > after.json
    python -m benchmarks.rooms before.json after.json --plot rooms.png

A profile is what ``tools/profile_step.py --json`` prints; the name of its file is its name in the
picture. Rooms below one per cent of every step go together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_ngpt.extras import require

SMALL, REST = 0.01, "the rest"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rooms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profiles", type=Path, nargs="+", help="JSON of tools/profile_step.py")
    parser.add_argument("--plot", type=Path, required=True, help="image file; extra plot")
    options = parser.parse_args(argv)
    found = {path.stem: json.loads(path.read_text()) for path in options.profiles}
    draw(rooms_of(found), options.plot)
    return 0


def rooms_of(profiles: Mapping[str, Mapping]) -> dict[str, dict[str, float]]:
    """Room -> milliseconds of CPU time in each profile's step, largest first."""
    shares = {name: profile["rooms"] for name, profile in profiles.items()}
    large = {r for own in shares.values() for r, share in own.items() if share >= SMALL}
    found: dict[str, dict[str, float]] = {}
    for name, own in shares.items():
        for room, share in own.items():
            times = found.setdefault(room if room in large else REST, dict.fromkeys(shares, 0.0))
            times[name] += share * profiles[name]["step"] * 1e3
    return dict(sorted(found.items(), key=lambda pair: -max(pair[1].values())))


def draw(rooms: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """A group of bars for each room, a bar for each profile."""
    pyplot = require("matplotlib.pyplot", "plot", "--plot")
    names = list(next(iter(rooms.values())))
    figure, axis = pyplot.subplots(figsize=(9, 0.35 * len(rooms) * len(names) + 1.5))
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [place + number * height for place in range(len(rooms))]
        bars = axis.barh(places, [times[name] for times in rooms.values()], height, label=name)
        axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axis.set_yticks([place + 0.4 - height / 2 for place in range(len(rooms))], list(rooms))
    axis.invert_yaxis()
    axis.set_xlabel("CPU milliseconds of a step")
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
