"""What engines and models really hold, in bytes."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from megatron_ngpt.config import Config
from megatron_ngpt.engine import zero
from megatron_ngpt.engine.direct import Direct
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.parallel.apply import table_parameters
from tests.distributed import CPU


def some_batch(config: Config, dp: int) -> Tensor:
    """Token ids of one rank's step, [accumulation, micro_batch, T + 1]."""
    rows = config.train.micro_batch
    shape = (config.train.global_batch // (rows * dp), rows, config.data.seq_len + 1)
    return torch.randint(config.model.vocab_size, shape)


def engine_on(mesh: Mesh, config: Config) -> Engine:
    """An engine on as many ranks as ``mesh`` has."""
    return Engine(config, Mesh.build(Degrees.of(config.parallel, mesh.degrees.dp), CPU))


def held(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Address and bytes of every storage behind some tensors."""
    found = {}
    for tensor in tensors:
        if tensor is not None and tensor.numel():
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def state_bytes(engine: Engine) -> dict[str, int]:
    """Weights and optimizer state, after a step."""
    parameters = [p for _, p in table_parameters(engine.deepspeed.module)]
    weights = held([p.data for p in parameters])
    weights |= held(getattr(p, "ds_tensor", None) for p in parameters)
    optimizer = held(f.flat for f in engine.masters.fragments)
    optimizer |= held(t for state in engine.optimizer.state.values() for t in state.values())
    return {
        "weights": sum(weights.values()),
        "optimizer": sum(size for at, size in optimizer.items() if at not in weights),
    }


def gradient_bytes(engine: Engine, batch: Tensor) -> int:
    """The gradient where it is largest: stages 0 and 1 before it is reduced, 2 and 3 after."""
    tokens, targets = batch[..., :-1], batch[..., 1:]
    stage, before = engine.config.optim.zero_stage, []
    if engine.pipeline is not None:
        with _before_reduction(lambda: before.append(_gradients(engine))):
            engine.backward(tokens, targets)
        return before[0]
    engine.deepspeed.train()
    for number, (x, y) in enumerate(zip(tokens, targets, strict=True)):
        engine.deepspeed.backward(engine.deepspeed(x, y))
        before.append(_gradients(engine))
        if number < len(tokens) - 1:
            engine.deepspeed.step()
    return before[0 if stage < 2 else -1]


@contextmanager
def _before_reduction(function: Callable[[], None]) -> Iterator[None]:
    """Call a function just before the engine reduces what a pipeline left."""
    real = zero.reduce_after_pipeline
    zero.reduce_after_pipeline = lambda engine: (function(), real(engine))
    try:
        yield
    finally:
        zero.reduce_after_pipeline = real


def _gradients(engine: Engine) -> int:
    found = held(p.grad for _, p in table_parameters(engine.deepspeed.module))
    if isinstance(engine.deepspeed, Direct):
        return sum((found | held(m.grad for m in engine.deepspeed.masters.values())).values())
    optimizer = engine.deepspeed.optimizer
    found |= held(getattr(optimizer, "fp32_groups_gradients_flat", ()))
    for group in getattr(optimizer, "averaged_gradients", {}).values():
        if engine.config.optim.zero_stage == 2:
            found |= held(group or ())
    found |= held([getattr(optimizer, "grad_partitions_flat_buffer", None)])
    return sum(found.values())


def kept_bytes(model: nn.Module, *inputs: Tensor | None) -> int:
    """Bytes that a forward pass keeps for its backward, parameters apart."""
    parameters = held(model.parameters())
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(*inputs)
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class Peak(TorchDispatchMode):
    """Bytes of all storages that operations inside made and that still live, and the most ever."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[weakref.ref, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor) and tensor.device == CPU:
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        _, known = self.live.pop(key, (None, 0))
        self.live[key] = (weakref.ref(storage, lambda _: self._drop(key)), size)
        self.now += size - known
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        if key in self.live:
            self.now -= self.live.pop(key)[1]


def alive_bytes(model: nn.Module, *inputs: Tensor | None) -> int:
    """Bytes of all storages that a forward pass leaves behind, whoever holds them, parameters
    apart."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    with Peak() as tracked:
        loss = model(*inputs)
        gc.collect()
        assert loss.requires_grad
        return sum(size for key, (_, size) in tracked.live.items() if key not in parameters)


def peak_bytes(mesh: Mesh, config: Config) -> int:
    """Most bytes that an engine's second step holds at once, what it keeps included."""
    gc.collect()
    gc.disable()  # a garbage collection in the middle would hide what is not freed by itself
    batch = some_batch(config, Degrees.of(config.parallel, mesh.degrees.dp).dp)
    with Peak() as tracked:
        engine = engine_on(mesh, config)
        engine.train_step(batch[..., :-1], batch[..., 1:], 0.01)
        gc.collect()
        tracked.peak = tracked.now
        engine.train_step(batch[..., :-1], batch[..., 1:], 0.01)
    gc.enable()
    return tracked.peak
