from megatron_ngpt.config import ModelConfig, OptimConfig
from megatron_ngpt.engine.optimizer import build_optimizer, set_learning_rate
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table

MODEL = ModelConfig(architecture="gpt", width=8, layers=1, heads=2, vocab_size=11)
OPTIM = OptimConfig(lr=0.5, betas=(0.8, 0.7), eps=1e-3, weight_decay=0.1)


def test_vectors_come_first_and_do_not_decay():
    """First, so that ZeRO's gradient buffers take their fp32; all matrices in one group, so that
    the projection is one all-reduce."""
    named = dict(NGPT(MODEL).named_parameters())
    optimizer = build_optimizer(named.items(), parameter_table(MODEL), OPTIM)
    vectors, matrices = optimizer.param_groups
    assert {p.dim() for p in vectors["params"]} == {1}
    assert {p.dim() for p in matrices["params"]} == {2}
    assert len(vectors["params"]) + len(matrices["params"]) == len(named)
    assert (vectors["weight_decay"], matrices["weight_decay"]) == (0.0, 0.1)
    for group in (vectors, matrices):
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.7), 1e-3)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
