"""Weights that other projects trained, under our names, read one parameter at a time."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.config.kinds import misfit
from megatron_ngpt.interop import hf, hf_config, ngpt_pytorch, nvidia
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.plain_json import parse_object


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

    seq_len: int = 0
    """Tokens of the sequences that it was trained with; 0 when it does not tell."""


def open_source(path: Path, arguments: Mapping[str, Any] | None = None) -> Source:
    """Whatever is at a path: a Hugging Face folder, NVIDIA/ngpt's ``ckpt.pt``, or a state dict of
    nGPT-pytorch.

    Args:
        path: folder or file.
        arguments: what the model of a state dict of nGPT-pytorch was made with.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is none of these, or lacks a parameter, or has one of another shape, or
            there are arguments for what has a configuration of its own.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    content = {} if path.is_dir() else _unpickle(path)
    if ngpt_pytorch.is_state_dict(tensors := _bare(content.get("model", content))):
        saved = content.get("kwargs") or content.get("config") or {}
        return _ngpt_pytorch(path, tensors, {**saved, **(arguments or {})})
    if arguments:
        raise ValueError(
            f"{path} is no state dict of nGPT-pytorch and has a configuration of its own: leave "
            f"{', '.join(arguments)} away"
        )
    return _hugging_face(path) if path.is_dir() else _nvidia(path, content)


def _hugging_face(folder: Path) -> Source:
    try:
        published = parse_object((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ValueError(f"{folder} is no Hugging Face model: config.json: {err}") from err
    if published.get("model_type") != "ngpt":
        raise ValueError(
            f"{folder}/config.json has model_type = {published.get('model_type')}, not ngpt"
        )
    model = _their_model(folder, published)
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

    length = published.get("max_position_embeddings") or 0
    if type(length) is not int:
        raise ValueError(f"{folder}/config.json: max_position_embeddings = {length!r}")
    return Source("Hugging Face NGPT", model, load, seq_len=length)


def _their_model(folder: Path, published: dict[str, Any]) -> ModelConfig:
    layers = published.get("num_hidden_layers")
    if type(layers) is not int or not 0 < layers <= _MOST_LAYERS:
        raise ValueError(f"{folder}/config.json: num_hidden_layers = {layers!r}")
    try:
        model = hf_config.model_config(published)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as err:
        raise ValueError(f"{folder}/config.json is no NGPT model's: {err!r}") from err
    if wrong := misfit(model):
        raise ValueError(f"{folder}/config.json is no NGPT model's: what means model.{wrong}")
    return model


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as err:
        raise ValueError(f"{path} cannot be read: {err}") from err


_MOST_LAYERS = 10_000
"""Of a model that is believed; each has a row of parameters made for it."""
_ROTARY = (
    "NVIDIA/ngpt's own rotary embedding is no rotation (its issue 10): a model trained with it "
    "unchanged computes something else here; one trained with the interleaved rotation does not"
)
_BEFORE_NAMES = re.compile(r"^((module|_orig_mod)\.)+")


def _nvidia(path: Path, content: dict[str, Any]) -> Source:
    if not {"model", "model_args"} <= content.keys():
        raise ValueError(
            f"{path} has no model and model_args as a ckpt.pt of NVIDIA/ngpt has, and no "
            "token_embed and rotary_embed as a state dict of nGPT-pytorch"
        )
    model = nvidia.model_config(content["model_args"])
    named = _bare(content["model"])
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


def _bare(named: Mapping[str, Any]) -> dict[str, Any]:
    """Without the prefixes of DDP and torch.compile."""
    return {_BEFORE_NAMES.sub("", name): value for name, value in named.items()}


def _ngpt_pytorch(path: Path, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> Source:
    try:
        published = ngpt_pytorch.Published(tensors, given)
        model, names = published.model, published.names
        _check(model, {ours: tensors[theirs].shape for ours, theirs in names.items()}, path)
    except KeyError as err:
        raise ValueError(f"{path}: the state dict has nothing for {err.args[0]}") from err
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from err
    return Source("nGPT-pytorch", model, published.load, published.warning)


def _unpickle(path: Path) -> dict[str, Any]:
    """What torch.save wrote, without running what a pickle may hold; its weights stay on disk.

    The random state that NVIDIA/ngpt's train.py saves beside them is a NumPy array, hence the names
    allowed.
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
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a model's weights")
    return content


def _check(model: ModelConfig, shapes: Mapping[str, Sequence[int]], place: Path) -> None:
    """Raise ValueError unless there is every parameter of a model, in its shape, and no other."""
    table = parameter_table(model)
    for name in sorted(table.keys() | shapes.keys()):
        wanted = table[name].shape if name in table else "nothing"
        found = tuple(shapes[name]) if name in shapes else "nothing"
        if wanted != found:
            raise ValueError(f"{place} has {found} for {name}, its configuration means {wanted}")
