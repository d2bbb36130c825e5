"""nGPT for Hugging Face transformers; importing this package registers it with the Auto classes.

``configuration_ngpt.py`` and ``modeling_ngpt.py`` import nothing of this project, so that an export
can carry them for users of ``trust_remote_code``. Sole home of transformers.
"""

from megatron_ngpt.extras import require

transformers = require("transformers", "hf", "Hugging Face models")

from megatron_ngpt.hf.configuration_ngpt import NGPTConfig  # noqa: E402
from megatron_ngpt.hf.modeling_ngpt import NGPTForCausalLM, NGPTModel  # noqa: E402

transformers.AutoConfig.register(NGPTConfig.model_type, NGPTConfig, exist_ok=True)
transformers.AutoModel.register(NGPTConfig, NGPTModel, exist_ok=True)
transformers.AutoModelForCausalLM.register(NGPTConfig, NGPTForCausalLM, exist_ok=True)

__all__ = ["NGPTConfig", "NGPTForCausalLM", "NGPTModel"]
