"""Sole home of DeepSpeed: start an engine, find its fp32 shards, refresh its low-precision copies.

Attribute names of DeepSpeed's optimizers are used here and nowhere else. Tested with 0.19.8.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from megatron_ngpt.config import Config
from megatron_ngpt.config.deepspeed import deepspeed_config
from megatron_ngpt.engine.direct import BuildModel, BuildOptimizer, Direct
from megatron_ngpt.engine.fragment import Fragment
from megatron_ngpt.engine.mpu import Mpu
from megatron_ngpt.engine.overrides import overridden
from megatron_ngpt.extras import require
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.spec import ParameterSpec, parameter_count
from megatron_ngpt.parallel.apply import Parts, table_parameters
from megatron_ngpt.parallel.shard import Shard


def _prepare(device: torch.device) -> Any:
    """Import DeepSpeed for a device, quietly, joined to the existing process group."""
    deepspeed = require("deepspeed", "", "training")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`torch.distributed.", FutureWarning)  # it calls old names
    if device.type == "cpu":
        # its shared-memory collectives would be compiled for half a minute at the first start
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon()
    backend = deepspeed.accelerator.get_accelerator().communication_backend_name()
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _import_muon() -> None:
    """Import DeepSpeed's Muon before DeepSpeed does, which looks whether the optimizer is one.

    Muon compiles three functions as it is imported, for which torch imports inductor: 2 s of CPU
    time of every start. No run here uses it, so they stay as they are written.
    """
    compiler: Any = require("deepspeed.runtime.compiler", "", "training")
    compiling, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    try:
        with suppress(ModuleNotFoundError):
            require("deepspeed.runtime.zero.muon.original_muon", "", "training")
    finally:
        compiler.compile = compiling


def _construction(deepspeed: Any, settings: dict[str, Any], mesh: Mesh) -> AbstractContextManager:
    """Context in which to build the model: at stage 3 parameters are partitioned as they appear."""
    if settings["zero_optimization"]["stage"] < 3:
        return nullcontext()
    # no dtype argument: on CPU, DeepSpeed 0.19.8 would take bf16 whatever it says
    context: AbstractContextManager = deepspeed.zero.Init(
        config_dict_or_path=settings, data_parallel_group=mesh.replica_group, mpu=Mpu(mesh)
    )
    return context


def start(
    config: Config,
    mesh: Mesh,
    table: Mapping[str, ParameterSpec],
    shards: Mapping[str, Shard],
    build_model: BuildModel,
    build_optimizer: BuildOptimizer,
) -> Any:
    """A DeepSpeedEngine around the model ``build_model()``, its optimizer made by
    ``build_optimizer`` of the parameters by name."""
    settings = deepspeed_config(config, mesh.degrees.dp, parameter_count(config.model))
    deepspeed = _prepare(mesh.device)
    with overridden(deepspeed, settings, config.engine.deepspeed_overrides):
        with _construction(deepspeed, settings, mesh):
            model = build_model()
        return _initialised(
            deepspeed, model, config, mesh, table, shards, settings, build_optimizer
        )


def _initialised(
    deepspeed: Any,
    model: Parts,
    config: Config,
    mesh: Mesh,
    table: Mapping[str, ParameterSpec],
    shards: Mapping[str, Shard],
    settings: dict[str, Any],
    build_optimizer: BuildOptimizer,
) -> Any:
    """DeepSpeed's engine of a model that is built."""
    named = list(table_parameters(model))
    low = config.train.dtype != "fp32"
    for name, parameter in named:
        # norms count a shard on every tensor-parallel rank, a replicated parameter on the first
        split = not shards[name].replicated
        _mark(parameter, tensor_model_parallel=split, model_parallel=split)
        if low and config.optim.zero_stage == 3 and not table[name].keeps_fp32:
            # gather in bf16: half the traffic, and the values are cast at use anyway
            _mark(parameter, comm_dtype=torch.bfloat16)

    def optimizer_once_cast(_: Any) -> torch.optim.Optimizer:
        # DeepSpeed has just cast every parameter to bf16; scaling vectors go back to fp32 before
        # any optimizer sees them
        for name, parameter in named:
            if table[name].keeps_fp32:
                parameter.data = parameter.data.float()
        return build_optimizer(named)

    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer_once_cast,
        config=settings,
        dist_init_required=False,
        mpu=Mpu(mesh),
    )
    return engine


def _mark(parameter: nn.Parameter, **attributes: Any) -> None:
    """Set the attributes by which DeepSpeed recognises kinds of parameters."""
    for name, value in attributes.items():
        setattr(parameter, name, value)


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer that updates the fp32 masters."""
    optimizer: torch.optim.Optimizer = engine.basic_optimizer
    return optimizer


def fragments(
    engine: Any, table: Mapping[str, ParameterSpec], shards: Mapping[str, Shard]
) -> list[Fragment]:
    """This rank's piece of every parameter, in an order all ranks share; empty ones included."""
    names = {id(parameter): name for name, parameter in table_parameters(engine.module)}
    found = []
    for parameter, start, length, flat, offset, group in _pieces(engine):
        name = names[id(parameter)]
        real = max(0, min(length, math.prod(shards[name].real) - start))  # less tp's padding
        found.append(Fragment(table[name], shards[name], start, real, flat, offset, group))
    return found


_Piece = tuple[nn.Parameter, int, int, Tensor, int, int]


def _pieces(engine: Any) -> Iterator[_Piece]:
    stage = engine.zero_optimization_stage()
    if isinstance(engine, Direct):
        return _whole(engine.masters)
    if stage == 0:
        return _whole({p: p for g in engine.basic_optimizer.param_groups for p in g["params"]})
    return _partitioned(engine.optimizer) if stage == 3 else _replicated(engine.optimizer)


def _whole(masters: Mapping[nn.Parameter, nn.Parameter]) -> Iterator[_Piece]:
    """Nothing is sharded: every master its own flat tensor, all of them stepped together."""
    for parameter, master in masters.items():
        yield parameter, 0, master.numel(), master, 0, 0


def _replicated(zero: Any) -> Iterator[_Piece]:
    """Stages 1 and 2: each group is flattened and cut into one partition per rank."""
    low = getattr(zero, "bit16_groups", None) or zero.bf16_groups
    high = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_groups_flat_partition
    for number, (parameters, flat) in enumerate(zip(low, high, strict=True)):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is None:
                yield parameter, 0, 0, flat, 0, number
            else:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield parameter, here.start, here.numel, flat, there.start, number


def _partitioned(zero: Any) -> Iterator[_Piece]:
    """Stage 3: each parameter is cut into one partition per rank, the last ones padded."""
    for parameters in zero.fp16_groups:
        for parameter in parameters:
            number, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
            rank = torch.distributed.get_rank(group=parameter.ds_process_group)
            start = min(rank * parameter.ds_tensor.ds_numel, parameter.ds_numel)
            length = min(padded, parameter.ds_numel - start)
            yield (
                parameter, start, length, zero.fp32_partitioned_groups_flat[number], offset, number
            )  # fmt: skip


def refresh_copies(engine: Any) -> None:
    """Make every parameter what its masters say, after they were written from outside."""
    if isinstance(engine, Direct):
        return engine.refresh_copies()
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        small = zero.persistent_parameters  # stay gathered: let go and gather anew
        if small:
            small[0].partition(small)
            small[0].all_gather(small)


def reduce_after_pipeline(engine: Any) -> None:
    """Average gradients over dp once all micro-batches went through the pipeline."""
    if isinstance(engine, Direct):
        return
    engine.set_gradient_accumulation_boundary(True)
    if engine.zero_optimization_stage() == 1:
        engine.optimizer.set_gradient_accumulation_boundary(True)
        engine.optimizer.reduce_gradients(pipeline_parallel=True)
    else:
        engine.allreduce_gradients()


def full_gradient(engine: Any, parameter: nn.Parameter) -> Tensor:
    """Whole averaged fp32 gradient after backward, before the step; collective at stages 1 to 3."""
    if isinstance(engine, Direct):
        mine = engine.masters[parameter].grad
        assert mine is not None
        return mine
    utilities = require("deepspeed.utils", "", "training")
    gradient: Tensor = utilities.safe_get_full_grad(parameter)
    return gradient.float()
