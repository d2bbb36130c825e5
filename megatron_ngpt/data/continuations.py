"""Multiple-choice questions out of any text: which of four passages goes on from here?

In the manner of HellaSwag (arXiv 1905.07830), whose wrong endings a model wrote; here they are true
passages from other places of the same corpus.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import TypedDict

WORD = re.compile(r"\S+\s*")


class Question(TypedDict):
    """One line of the file that lm-eval-harness reads; context and a choice make up the text."""

    context: str
    choices: list[str]
    label: int
    """Which choice is the true one."""


def questions(
    texts: Sequence[str], count: int, context: int, choice: int, choices: int = 4, seed: int = 0
) -> list[Question]:
    """Questions dealt out to the documents in turn; the same arguments give the same ones.

    Args:
        texts: documents.
        count: how many questions.
        context: words before the place where a choice goes on.
        choice: words of each choice.
        choices: how many, one of them true.
        seed: of the places and of the order.

    Raises:
        ValueError: no document, or too few, has the words for it.
    """
    draw = random.Random(seed)
    long = [words for text in texts if len(words := WORD.findall(text)) >= context + choice]
    if sum(len(words) // (context + choice) for words in long) < choices:
        raise ValueError(
            f"fewer than {choices} passages of {context} + {choice} words in {len(texts)} "
            "documents: give more text, or fewer words"
        )
    return [
        _question(long, long[number % len(long)], (context, choice, choices), draw)
        for number in range(count)
    ]


def _question(
    texts: list[list[str]], words: list[str], shape: tuple[int, int, int], draw: random.Random
) -> Question:
    context, choice, choices = shape
    at = draw.randrange(context, len(words) - choice + 1)
    true = _joined(words[at : at + choice])
    found = [true]
    while len(found) < choices:
        other = draw.choice(texts)
        start = draw.randrange(len(other) - choice + 1)
        passage = _joined(other[start : start + choice])
        if passage not in found:
            found.append(passage)
    draw.shuffle(found)
    before = _joined(words[at - context : at])
    return Question(context=before, choices=[f" {x}" for x in found], label=found.index(true))


def _joined(words: list[str]) -> str:
    """Words with single spaces: where lines broke must not tell the choices apart."""
    return " ".join(word.strip() for word in words)
