"""How well a model uses long contexts: loss by position in long documents, and passkey retrieval.

Every data-parallel rank takes other documents or prompts; the ranks that share one of them work on
it together, whatever tp, cp and pp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from megatron_ngpt.config import IGNORED
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.token_losses import token_losses

Encode = Callable[[str], Sequence[int]]


def long_documents(dataset: IndexedDataset, length: int, count: int) -> list[np.ndarray]:
    """The first ``length`` + 1 tokens of the first ``count`` documents that have as many.

    Raises:
        ValueError: there is none.
    """
    found: list[np.ndarray] = []
    longest = 0
    for number in range(dataset.document_count):
        document = dataset.document(number)
        longest = max(longest, len(document))
        if len(document) > length:
            found.append(document[: length + 1].astype(np.int64))
        if len(found) == count:
            break
    if not found:
        raise ValueError(
            f"--data {dataset.prefix}: no document has {length} + 1 tokens, the longest {longest}: "
            "evaluate shorter lengths, or text with longer documents"
        )
    return found


def loss_by_position(engine: Engine, documents: Sequence[np.ndarray], buckets: int) -> list[float]:
    """Mean loss in nats of each of ``buckets`` equal parts of the documents, first to last.

    Collective. A document's every token but the first is predicted from all that come before it.

    Args:
        engine: the model.
        documents: token ids [T + 1] each, T a multiple of ``parallel.sequence_unit``.
        buckets: how many parts; at most T.
    """
    sums = torch.zeros(buckets, dtype=torch.float64, device=engine.mesh.device)
    for document in _mine(engine, documents):
        row = torch.from_numpy(document).to(engine.mesh.device)[None]
        found = token_losses(engine, row[:, :-1], row[:, 1:])
        if found is not None and _speaks(engine):
            parts = found[0, 0].double().tensor_split(buckets)
            sums += torch.stack([part.mean() for part in parts])
    dist.all_reduce(sums)
    return (sums / len(documents)).tolist()


@dataclass(frozen=True)
class Passkey:
    """A prompt that hides a number, and asks for it at the end (arXiv 2305.16300)."""

    ids: tuple[int, ...]
    """Prompt and answer."""
    answer: int
    """How many of them are the answer."""

    @classmethod
    def make(cls, encode: Encode, length: int, depth: float, key: int) -> Passkey:
        """A prompt of about ``length`` tokens, not more, with the number at a depth in 0..1.

        Raises:
            ValueError: the length has no room for the question.
        """
        intro = encode("There is important information hidden in the text below. Find it.\n")
        filler = encode("The grass is green. The sky is blue. The sun is yellow. Here we go. ")
        needle = encode(f"The pass key is {key}. Remember it. {key} is the pass key. ")
        question = encode("\nWhat is the pass key? The pass key is")
        answer = encode(f" {key}")
        room = length - sum(map(len, (intro, needle, question, answer)))
        if room < 0:
            raise ValueError(f"--lengths {length} is too short for a passkey prompt: {-room} more")
        around = room // len(filler)
        before = round(depth * around)
        parts = (intro, *[filler] * before, needle, *[filler] * (around - before), question, answer)
        return cls(tuple(token for part in parts for token in part), len(answer))


def passkey_accuracy(engine: Engine, prompts: Sequence[Passkey]) -> float:
    """Share of prompts whose every answer token is the model's first choice; collective.

    That is what greedy generation gives: a token is looked at only where all before it are right.
    """
    unit, hits = engine.config.parallel.sequence_unit, torch.zeros((), device=engine.mesh.device)
    for prompt in _mine(engine, prompts):
        size = -(-(len(prompt.ids) - 1) // unit) * unit
        row = torch.zeros(1, size + 1, dtype=torch.int64)
        row[0, : len(prompt.ids)] = torch.tensor(prompt.ids)
        tokens, targets = row[:, :-1], torch.full((1, size), IGNORED)
        asked = slice(len(prompt.ids) - 1 - prompt.answer, len(prompt.ids) - 1)
        targets[:, asked] = row[:, 1:][:, asked]
        device = engine.mesh.device
        found = token_losses(engine, tokens.to(device), targets.to(device))
        if found is not None and _speaks(engine):
            hits += found[1, 0, asked].min()
    dist.all_reduce(hits)
    return float(hits) / len(prompts)


def _mine(engine: Engine, everything: Sequence) -> Sequence:
    """This data-parallel rank's share."""
    return everything[engine.mesh.index("dp") :: engine.mesh.degrees.dp]


def _speaks(engine: Engine) -> bool:
    """Whether this rank, of those that share a document, adds what they all know."""
    return engine.mesh.index("tp") == engine.mesh.index("cp") == 0
