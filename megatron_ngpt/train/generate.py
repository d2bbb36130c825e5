"""Text from a model: one token at a time with a key-value cache, for one prompt or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ngpt.model.attention import KeyValueCache, side_by_side
from megatron_ngpt.model.ngpt import NGPT


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        ValueError: a setting is out of range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature = {self.temperature} must be >= 0, top_p = {self.top_p} in (0, 1]"
            )


@torch.inference_mode()
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
    sampling = Sampling(temperature, top_p)
    for [token] in _tokens(model, [prompt], length, sampling, [seed]):
        if token == stop:
            return
        yield token


@torch.inference_mode()
def generate_all(
    model: NGPT,
    prompts: Sequence[Sequence[int]],
    *,
    length: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
) -> list[list[int]]:
    """What :func:`generate` yields for each of several prompts, which go through together.

    Prompt n samples with ``seed + n``. Prompts of one length are read together, whatever their
    length they are continued together; none sees another or the room before it.
    """
    made: list[list[int]] = [[] for _ in prompts]
    if not prompts:
        return made
    going, seeds = set(range(len(prompts))), [seed + n for n in range(len(prompts))]
    for tokens in _tokens(model, prompts, length, Sampling(temperature, top_p), seeds):
        going -= {n for n in going if tokens[n] == stop}
        for n in going:
            made[n].append(tokens[n])
        if not going:
            break
    return made


def _tokens(
    model: NGPT,
    prompts: Sequence[Sequence[int]],
    length: int,
    sampling: Sampling,
    seeds: Sequence[int],
) -> Iterator[list[int]]:
    """The next token of every prompt, again and again."""
    for prompt in prompts:
        _check(prompt, model.config.vocab_size)
    if length < 1:
        return
    device = next(model.parameters()).device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    logits_BV, caches = _read(model, prompts, device)
    position_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
    room_B = caches[0].length - position_B  # before each row's first token
    first_B1 = room_B[:, None] if room_B.any() else None
    for left in reversed(range(length)):
        tokens = [
            pick(logits_V, sampling.temperature, sampling.top_p, generator)
            for logits_V, generator in zip(logits_BV, generators, strict=True)
        ]
        yield tokens
        if left:
            logits_BV = model(
                torch.tensor(tokens, device=device)[:, None],
                positions=position_B[:1] if first_B1 is None else position_B[:, None],
                caches=caches,
                first_BS=first_B1,
            )[:, -1]
            position_B = position_B + 1


def _check(prompt: Sequence[int], vocab_size: int) -> None:
    if not prompt:
        raise ValueError("the prompt has no tokens: give at least one character of text")
    if max(prompt) >= vocab_size:
        raise ValueError(
            f"the prompt has token id {max(prompt)}, but the model knows {vocab_size} "
            "ids: give the tokenizer that the model was trained with"
        )


def _read(
    model: NGPT, prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, list[KeyValueCache]]:
    """Logits [B, V] after each prompt, and one cache per block with all prompts side by side.

    Prompts of one length are one batch, so that no token is read that is not there.
    """
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    found, order, groups = [], [], []
    for numbers in by_length.values():
        caches = [KeyValueCache() for _ in model.blocks]
        tokens = torch.tensor([list(prompts[n]) for n in numbers], device=device)
        found.append(model(tokens, caches=caches, last_only=True)[:, -1])
        order += numbers
        groups.append(caches)
    if len(groups) == 1:
        return found[0], groups[0]
    back = torch.tensor(order, device=device).argsort()
    joined = [side_by_side(blocks, back) for blocks in zip(*groups, strict=True)]
    return torch.cat(found)[back], joined


_LIKELIEST = 512
"""Tokens that usually hold ``top_p`` of the probability; sorting these few is enough then."""


def pick(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Sample one token id from logits [V] (nucleus sampling, arXiv 1904.09751)."""
    if temperature == 0:
        return int(logits_V.argmax())
    distance_V = logits_V.double() - logits_V.max()  # no temperature makes the largest infinite
    all_V = (distance_V / temperature).softmax(-1)
    if top_p == 1:
        return int(torch.multinomial(all_V, 1, generator=generator))
    chances, ids = all_V.topk(min(_LIKELIEST, len(all_V)))
    if chances.sum() < top_p:
        chances, ids = all_V.sort(descending=True)
    before = chances.cumsum(-1) - chances
    kept = chances.where(before < top_p, 0.0)  # the first is always kept
    return int(ids[torch.multinomial(kept, 1, generator=generator)])
