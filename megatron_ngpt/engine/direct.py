"""One replica's step without DeepSpeed: there is nothing to partition, reduce or gather.

Answers the calls of DeepSpeed's engine that a training step makes. Parameters are their own
fp32 masters, as at ZeRO stage 0; where the run keeps bf16 copies (config/deepspeed.py), each matrix
has a master beside it, and every backward adds its bf16 gradient to the master's fp32 one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from megatron_ngpt.config import Config
from megatron_ngpt.config.deepspeed import uses_low_precision_copy
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.spec import ParameterSpec
from megatron_ngpt.parallel.apply import Parts, table_parameters
from megatron_ngpt.parallel.shard import Shard

BuildModel = Callable[[], Parts]
BuildOptimizer = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


def start(
    config: Config,
    mesh: Mesh,
    table: Mapping[str, ParameterSpec],
    _: Mapping[str, Shard],
    build_model: BuildModel,
    build_optimizer: BuildOptimizer,
) -> Direct:
    """As :func:`megatron_ngpt.engine.zero.start`, for one replica."""
    assert mesh.degrees.replicas == 1
    # a pipeline runs all micro-batches of a step before it
    accumulation = config.train.global_batch // config.train.micro_batch
    accumulation = 1 if mesh.degrees.pp > 1 else accumulation
    dtype = torch.bfloat16 if uses_low_precision_copy(config) else torch.float32
    return Direct(build_model(), table, build_optimizer, accumulation, dtype)


class Direct:
    """A model, its optimizer and nothing between them.

    Args:
        module: the model, parameters fp32.
        table: every parameter of the unsharded model.
        build_optimizer: of the fp32 masters, by table name.
        accumulation: backwards that make one step.
        copy_dtype: dtype of the copies that the model computes with; fp32 for none.
    """

    def __init__(
        self,
        module: Parts,
        table: Mapping[str, ParameterSpec],
        build_optimizer: BuildOptimizer,
        accumulation: int,
        copy_dtype: torch.dtype,
    ) -> None:
        self.module, self.accumulation, self.backwards = module, accumulation, 0
        self.masters: dict[nn.Parameter, nn.Parameter] = {}
        self.hooks: list[Any] = []
        for name, parameter in table_parameters(module):
            low = copy_dtype != torch.float32 and not table[name].keeps_fp32
            self.masters[parameter] = self._copied(parameter, copy_dtype) if low else parameter
        named = [(n, self.masters[p]) for n, p in table_parameters(module)]
        self.basic_optimizer = build_optimizer(named)

    def _copied(self, parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        """The master of a parameter that becomes its copy."""
        master = nn.Parameter(parameter.data)
        parameter.data = parameter.data.to(dtype)

        def hand_on(_: Tensor) -> None:
            assert parameter.grad is not None
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

        self.hooks.append(parameter.register_post_accumulate_grad_hook(hand_on))
        return master

    def __call__(self, *inputs: Any) -> Any:
        """The model's forward."""
        return self.module(*inputs)

    def train(self) -> None:
        """Training mode."""
        self.module.train()

    def eval(self) -> None:
        """Evaluation mode."""
        self.module.eval()

    def zero_optimization_stage(self) -> int:
        """Nothing is sharded, whatever optim.zero_stage is."""
        return 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of the mean over the micro-batches."""
        (loss if self.accumulation == 1 else loss / self.accumulation).backward()

    def step(self) -> None:
        """Count a micro-batch; after the last one step, refresh the copies, forget the gradient."""
        self.backwards = (self.backwards + 1) % self.accumulation
        if self.backwards == 0:
            self.basic_optimizer.step()
            self.basic_optimizer.zero_grad()
            self.refresh_copies()

    @torch.no_grad()
    def refresh_copies(self) -> None:
        """Round every master to its copy."""
        for parameter, master in self.masters.items():
            if parameter is not master:
                parameter.copy_(master)

    def destroy(self) -> None:
        """Take the hooks away."""
        for hook in self.hooks:
            hook.remove()
