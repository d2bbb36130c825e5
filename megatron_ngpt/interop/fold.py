"""An export whose head holds the scale of the logits, for servers that compute logits themselves.

vLLM's Transformers backend takes the hidden states of the model and multiplies them by ``lm_head``;
it knows no ``sz``. With s_z folded into the rows of the head both compute the same: the head's rows
are no unit vectors then, and a missing ``sz`` starts at its initial value, which becomes 1.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

HEAD, EMBEDDING, SCALE = "lm_head.weight", "model.embed_tokens.weight", "sz.weight"
INDEX = "model.safetensors.index.json"


def fold_logit_scale(folder: Path) -> None:
    """Multiply the rows of an export's head by its s_z and take ``sz`` out of it, in place.

    A tied head becomes a tensor of its own. Only files with one of these tensors are written anew.

    Args:
        folder: what :func:`megatron_ngpt.interop.export.export` wrote.

    Raises:
        ValueError: the folder has no ``sz``, for example because it is folded already.
    """
    places = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _names(path)}
    if SCALE not in places:
        raise ValueError(f"{folder} has no {SCALE}: it is folded already or no nGPT")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    start = config["sz_init_scaling"] or config["initializer_range"]
    scale = _read(places[SCALE], SCALE).float() * (config["sz_init_value"] / start)
    head = HEAD if HEAD in places else EMBEDDING
    weight = _read(places[head], head)
    folded = (weight.float() * scale.reshape(-1, 1)).to(weight.dtype).contiguous()
    _rewrite(places[SCALE], without=SCALE)
    _rewrite(places[head], **{HEAD: folded})
    path.write_text(
        json.dumps({**config, "sz_init_value": 1.0, "tie_word_embeddings": False}, indent=2) + "\n",
        encoding="utf-8",
    )
    if (folder / INDEX).exists():
        _reindex(folder)


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as stored:
        return list(stored.keys())


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as stored:
        tensor: Tensor = stored.get_tensor(name)
        return tensor


def _rewrite(path: Path, without: str = "", **changed: Tensor) -> None:
    """A file with some tensors changed or added and one left out, whole or not at all."""
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
        kept = {name: stored.get_tensor(name) for name in stored.keys() if name != without}  # noqa: SIM118
    temporary = path.with_suffix(".folding")
    save_file({**kept, **changed}, temporary, metadata)
    temporary.replace(path)


def _reindex(folder: Path) -> None:
    """The index again, from the files."""
    where: dict[str, str] = {}
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        where |= dict.fromkeys(_names(path), path.name)
        size += path.stat().st_size - _header_bytes(path)
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header_bytes(path: Path) -> int:
    """What a safetensors file has before its values: a length of 8 bytes, and so much JSON."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")
