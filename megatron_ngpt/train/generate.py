"""Text from a model: one token at a time with a key-value cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_ngpt.model.attention import KeyValueCache
from megatron_ngpt.model.ngpt import NGPT


@torch.no_grad()
def generate(
    model: NGPT,
    prompt: Sequence[int],
    *,
    length: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
) -> Iterator[int]:
    """Yield up to ``length`` token ids that continue ``prompt``.

    Args:
        model: in evaluation mode, on one device.
        prompt: token ids, at least one.
        length: most tokens to yield.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: of the sampling.
        stop: token id that ends the text; it is not yielded.

    Raises:
        ValueError: the prompt is empty or not of this model's vocabulary, or a setting is out of
            range.
    """
    if not prompt:
        raise ValueError("the prompt has no tokens: give at least one character of text")
    if max(prompt) >= model.config.vocab_size:
        raise ValueError(
            f"the prompt has token id {max(prompt)}, but the model knows {model.config.vocab_size} "
            "ids: give the tokenizer that the model was trained with"
        )
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature = {temperature} must be >= 0, top_p = {top_p} in (0, 1]")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    caches = [KeyValueCache() for _ in model.blocks]
    fresh, seen = torch.tensor([list(prompt)], device=device), 0
    for _ in range(length):
        positions = torch.arange(seen, seen + fresh.shape[1], device=device)
        logits_V = model(fresh, positions=positions, caches=caches)[0, -1]
        seen += fresh.shape[1]
        token = pick(logits_V, temperature, top_p, generator)
        if token == stop:
            return
        yield token
        fresh = torch.tensor([[token]], device=device)


def pick(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Sample one token id from logits [V] (nucleus sampling, arXiv 1904.09751)."""
    if temperature == 0:
        return int(logits_V.argmax())
    distance_V = logits_V.double() - logits_V.max()  # no temperature makes the largest infinite
    chances, ids = (distance_V / temperature).softmax(-1).sort(descending=True)
    before = chances.cumsum(-1) - chances
    kept = chances.where(before < top_p, 0.0)  # the first is always kept
    return int(ids[torch.multinomial(kept, 1, generator=generator)])
