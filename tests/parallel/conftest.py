"""Every case of a number of ranks in one launch, and the same on one process without an engine."""

import functools
import types
from collections.abc import Callable
from unittest.mock import patch

import pytest
from torch import Tensor
from torch.nn import functional as F

from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops import linear
from tests.distributed import run
from tests.engine.training import Record as PlainRecord
from tests.engine.training import train_plainly
from tests.parallel.training import Case, Record, config_of, some_tokens, train_each


@pytest.fixture(scope="session")
def trained(request) -> Callable[[Case], list[Record]]:
    """A case's record on every rank; the first time all that are asked for on as many ranks run."""

    @functools.cache
    def train(ranks: int) -> list[dict[Case, Record]]:
        asked = [getattr(item, "callspec", None) for item in request.session.items]
        found = (spec.params.get("case") for spec in asked if spec)
        cases = dict.fromkeys(case for case in found if isinstance(case, Case))
        wanted = [case for case in cases if case.ranks == ranks]
        return run(ranks, train_each, wanted, some_tokens(), timeout=300 + 60 * len(wanted))

    return lambda case: [rank[case] for rank in train(case.ranks)]


def tokens_of(kind: str) -> Tensor:
    return some_tokens() % config_of(Case(kind)).model.vocab_size


@pytest.fixture(scope="session")
def plain() -> Callable[[str], PlainRecord]:
    """A kind of run on one process: whole batches, no engine, fp32."""
    return functools.cache(lambda kind: train_plainly(config_of(Case(kind)), tokens_of(kind)))


def _in_halves(x: Tensor, weight: Tensor) -> Tensor:
    """A matrix product as the sum of two, which is what two tensor-parallel ranks do."""
    half = weight.shape[1] // 2
    return F.linear(x[..., :half], weight[:, :half]) + F.linear(x[..., half:], weight[:, half:])


@pytest.fixture(scope="session")
def summed_otherwise() -> Callable[[str], list[PlainRecord]]:
    """The same on one process, with sums in other orders: over samples, and over inputs."""

    @functools.cache
    def train(kind: str) -> list[PlainRecord]:
        config, tokens = config_of(Case(kind)), tokens_of(kind)
        found = [train_plainly(config, tokens.flip(1))]
        functions = types.SimpleNamespace(linear=_in_halves, embedding=F.embedding)
        with patch.object(linear, "F", functions):
            return [*found, train_plainly(config, tokens)]

    return train


@pytest.fixture(scope="session")
def initial_model() -> Callable[[str], NGPT]:
    """The whole model of a kind with its initial weights."""

    @functools.cache
    def build(kind: str) -> NGPT:
        config = config_of(Case(kind))
        model = NGPT(config.model)
        initialise(model, parameter_table(config.model), config.train.seed)
        return model

    return build
