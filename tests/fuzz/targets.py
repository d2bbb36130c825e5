"""What reads files that others made: each target is handed the content of one."""

from pathlib import Path

from tests.fuzz.of_checkpoints import index, state, tensors, weights, weights_config
from tests.fuzz.of_data import charsmap, flat, lines, manifest, pair, tokenizer_json
from tests.fuzz.of_runs import owner, records, settings
from tests.fuzz.target import Target

MAKERS = (
    *(pair, flat, manifest, lines, tokenizer_json, charsmap),
    *(index, tensors, state, weights_config, weights),
    *(settings, records, owner),
)
NAMES = tuple(make.__name__ for make in MAKERS)


def target(name: str, folder: Path) -> Target:
    """One of them, with files in a folder."""
    place = folder / name
    place.mkdir()
    return MAKERS[NAMES.index(name)](place)


def targets(folder: Path) -> dict[str, Target]:
    """All of them."""
    return {name: target(name, folder) for name in NAMES}
