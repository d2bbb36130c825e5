"""The export's own sharding plan, as transformers applies it on two ranks."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import megatron_ngpt.hf  # noqa: F401
from tests.distributed import run
from tests.hf.conftest import KINDS

pytest.importorskip("accelerate")  # what transformers asks for to shard
IDS = torch.arange(14).view(2, 7)
SHARDS = ("default", "as ported", "differential", "ensemble", "gpt", "gpt ensemble", "arc")


def _logits(mesh, folders) -> list:
    found = []
    for folder in folders:
        config = DistributedConfig(tp_size=2)
        model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=config).eval()
        with torch.no_grad():
            logits = model(IDS).logits
        projection = model.model.layers[0].self_attn.q_proj.weight.to_local()
        found.append((logits, projection.shape[0]))
    return found


@pytest.mark.slow
def test_two_ranks_compute_the_same(exported):
    kinds = [kind for kind in SHARDS if KINDS[kind].kv_heads % 2 == 0]
    made = [exported(kind) for kind in kinds]
    for logits_and_rows in run(2, _logits, [one.folder for one in made]):
        for kind, one, (logits, rows) in zip(kinds, made, logits_and_rows, strict=True):
            assert rows == KINDS[kind].query_width // 2, kind
            with torch.no_grad():
                expected = one.model(IDS)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5, msg=kind)
