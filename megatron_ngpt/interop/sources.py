"""Weights that other projects trained, under our names, read one parameter at a time."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.interop import hf, hf_config, nvidia
from megatron_ngpt.model.spec import parameter_table


@dataclass(frozen=True)
class Source:
    """A trained model somewhere else."""

    kind: str
    """Whose it is, in words."""

    model: ModelConfig
    """Its shape and maths as ours."""

    load: Callable[[str], Tensor]
    """One whole parameter by our name, fp32."""

    warning: str = ""
    """What the user should know before training on."""


def open_source(path: Path) -> Source:
    """Whatever is at a path: a Hugging Face folder, or NVIDIA/ngpt's ``ckpt.pt``.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is none of these, or lacks a parameter, or has one of another shape.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return _hugging_face(path) if path.is_dir() else _nvidia(path)


def _hugging_face(folder: Path) -> Source:
    try:
        published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ValueError(f"{folder} is no Hugging Face model: config.json: {err}") from err
    if published.get("model_type") != "ngpt":
        raise ValueError(
            f"{folder}/config.json has model_type = {published.get('model_type')}, not ngpt"
        )
    model = hf_config.model_config(published)
    places: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with _opened(path) as stored:
            for theirs in stored.keys():  # noqa: SIM118
                ours = hf.our_name(theirs)
                places[ours], shape = (path, theirs), stored.get_slice(theirs).get_shape()
                shapes[ours] = shape[:1] if shape[1:] == [1] else shape
    _check(model, shapes, folder)

    def load(name: str) -> Tensor:
        path, theirs = places[name]
        with _opened(path) as stored:
            return hf.to_ours(stored.get_tensor(theirs)).float()

    return Source("Hugging Face NGPT", model, load)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as err:
        raise ValueError(f"{path} cannot be read: {err}") from err


_ROTARY = (
    "NVIDIA/ngpt's own rotary embedding is no rotation (its issue 10): a model trained with it "
    "unchanged computes something else here; one trained with the interleaved rotation does not"
)
_PREFIXES = ("module.", "_orig_mod.")  # of DDP and torch.compile


def _nvidia(path: Path) -> Source:
    content = _unpickle(path)
    model = nvidia.model_config(content["model_args"])
    named = {_bare(name): tensor for name, tensor in content["model"].items()}
    places = {
        ours: (theirs, number)
        for theirs in named
        for number, ours in enumerate(nvidia.our_names(theirs))
    }

    def stored(name: str) -> Tensor:
        theirs, number = places[name]
        return named[theirs].chunk(len(nvidia.our_names(theirs)))[number]

    _check(model, {name: stored(name).shape for name in places}, path)
    return Source("NVIDIA/ngpt", model, lambda name: stored(name).float(), _ROTARY)


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _unpickle(path: Path) -> dict[str, Any]:
    """A ``ckpt.pt`` without running what a pickle may hold; its weights stay on disk.

    The random state that train.py saves beside them is a NumPy array, hence the names allowed.
    """
    rebuild = np.zeros(0).__reduce__()[0]
    allowed: list[Any] = [
        (rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")
    ]
    allowed += [np.ndarray, np.dtype, type(np.dtype("uint32"))]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as err:
        raise ValueError(f"{path} cannot be read as a file of torch.save: {err}") from err
    if not isinstance(content, dict) or not {"model", "model_args"} <= content.keys():
        raise ValueError(f"{path} is no ckpt.pt of NVIDIA/ngpt: it has no model and model_args")
    return content


def _check(model: ModelConfig, shapes: Mapping[str, Sequence[int]], place: Path) -> None:
    """Raise ValueError unless there is every parameter of a model, in its shape, and no other."""
    table = parameter_table(model)
    for name in sorted(table.keys() | shapes.keys()):
        wanted = table[name].shape if name in table else "nothing"
        found = tuple(shapes[name]) if name in shapes else "nothing"
        if wanted != found:
            raise ValueError(f"{place} has {found} for {name}, its configuration means {wanted}")
