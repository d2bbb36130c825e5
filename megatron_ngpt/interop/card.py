"""The model card of an export: what was trained, on what, how long, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from megatron_ngpt.config import Config, blends_of
from megatron_ngpt.run.checkpoints import STATE, read_progress

_TEXT = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- ngpt
---

# {name}

{what}, {parameters:,} parameters, trained with megatron-ngpt.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

import megatron_ngpt.hf  # or from_pretrained(..., trust_remote_code=True) with the code in this folder

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))
```

| | |
| --- | --- |
{facts}
"""  # noqa: E501


_KINDS = {
    "ngpt": "nGPT ([arXiv 2410.01131](https://arxiv.org/abs/2410.01131))",
    "gpt": "The GPT (RMSNorm before every block) that nGPT is compared with",
}
_ATTENTION = {
    "standard": "",
    "differential": ", differential attention",
    "ensemble": ", linear ensemble attention",
}


def model_card(name: str, checkpoint: Path, config: Config, parameters: int) -> str:
    """Markdown with the front matter that the Hub reads."""
    facts = "\n".join(f"| {what} | {value} |" for what, value in _facts(checkpoint, config))
    what = _KINDS[config.model.architecture] + _ATTENTION[config.model.attention]
    return _TEXT.format(name=name, what=what, parameters=parameters, facts=facts)


def _facts(checkpoint: Path, config: Config) -> Iterator[tuple[str, str]]:
    model, optim, progress = config.model, config.optim, read_progress(checkpoint)
    yield (
        "shape",
        (
            f"width {model.width}, {model.layers} layers, {model.heads} heads of {model.head_dim} "
            f"({model.kv_heads} for keys), {model.mlp} {model.ffn_width} wide, "
            f"{model.vocab_size} token ids"
        ),
    )
    yield (
        "trained",
        f"{progress.step:,} of {config.train.steps:,} steps, {progress.tokens:,} tokens",
    )
    last = " in the last step" * bool(config.data.stages)
    yield "batch", f"{config.train.global_batch} sequences of {config.data.seq_len} tokens{last}"
    yield (
        "optimizer",
        (
            f"AdamW, lr {optim.lr:g}, {optim.schedule}, betas {optim.betas[0]}, {optim.betas[1]}, "
            f"weight decay {optim.weight_decay:g}"
        ),
    )
    yield "precision", config.train.dtype
    corpora = [corpus.name for blend in blends_of(config.data).values() for corpus in blend]
    if corpora:
        yield "corpora", ", ".join(dict.fromkeys(corpora))
    topology = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("topology")
    if topology:
        yield "topology", ", ".join(f"{name} {degree}" for name, degree in topology.items())
