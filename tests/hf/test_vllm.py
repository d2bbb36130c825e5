"""vLLM's Transformers backend serves an export.

    VLLM_PYTHON=VENV/bin/python pytest tests/hf/test_vllm.py

vLLM wants versions of its own, so it has an environment of its own.
"""

import json
import os
import subprocess

import pytest
import torch

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.interop.fold import fold_logit_scale
from tests.hf.conftest import _export

hf = pytest.importorskip("megatron_ngpt.hf")
PYTHON = os.environ.get("VLLM_PYTHON", "")
PROMPTS = [[5, 9], [7, 30, 41], [100, 3, 250, 17]]
NEW = 12
KINDS = {
    "default": ModelConfig(width=64, layers=2, heads=2, ffn_width=96, vocab_size=330),
    "as ported": ModelConfig(
        width=128, layers=2, heads=4, kv_heads=2, ffn_width=96, vocab_size=330,
        mlp="relu2", mlp_eps=1e-6, rope_style="half",
    ),
    "value residual, slerp": ModelConfig(
        width=64, layers=2, heads=2, ffn_width=96, vocab_size=330, value_residual=True,
        residual="slerp",
    ),
    "gpt": ModelConfig(
        architecture="gpt", width=64, layers=2, heads=2, ffn_width=96, vocab_size=330
    ),
}  # fmt: skip
SERVE = """
import json, sys
from vllm import LLM, SamplingParams
folder, prompts, new = json.loads(sys.argv[1])
llm = LLM(model=folder, trust_remote_code=True, model_impl="transformers", dtype="float32",
          enforce_eager=True, max_model_len=64, max_num_seqs=4, max_num_batched_tokens=64)
sampling = SamplingParams(temperature=0, max_tokens=new, logprobs=1, ignore_eos=True)
outputs = [o.outputs[0] for o in llm.generate([{"prompt_token_ids": p} for p in prompts], sampling)]
told = [(list(o.token_ids), [d[i].logprob for d, i in zip(o.logprobs, o.token_ids)])
        for o in outputs]
print("TOLD", json.dumps(told))
"""
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": "",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no interpreter that has vLLM")
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_log_probabilities_are_transformers(tmp_path, sentencepiece, kind):
    folder = _export(KINDS[kind], tmp_path, sentencepiece).folder
    expected = [greedy(folder, prompt) for prompt in PROMPTS]
    if KINDS[kind].is_ngpt:
        fold_logit_scale(folder)
    words = [PYTHON, "-c", SERVE, json.dumps([str(folder), PROMPTS, NEW])]
    done = subprocess.run(
        words, env=os.environ | SETTINGS, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = next(x for x in done.stdout.splitlines() if x.startswith("TOLD"))
    for (ids, chances), (their_ids, their_chances) in zip(
        expected, json.loads(told.removeprefix("TOLD")), strict=True
    ):
        assert their_ids == ids
        assert their_chances == pytest.approx(chances, abs=1e-5)


def greedy(folder, prompt):
    """Next tokens and their log-probabilities by transformers."""
    model = hf.NGPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    made = model.generate(
        torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        output_logits=True, return_dict_in_generate=True, eos_token_id=None,
    )  # fmt: skip
    ids = made.sequences[0, len(prompt) :].tolist()
    chances = [
        torch.log_softmax(x[0].float(), -1)[i].item() for x, i in zip(made.logits, ids, strict=True)
    ]
    return ids, chances
