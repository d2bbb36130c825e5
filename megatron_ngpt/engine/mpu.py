"""The mesh under the names by which DeepSpeed asks for it."""

from __future__ import annotations

import torch.distributed as dist

from megatron_ngpt.mesh.mesh import Mesh


class Mpu:
    """DeepSpeed's "model parallel unit": who shards optimizer state, who holds other parameters."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that hold the same parameters and see other tokens: dp and cp."""
        return self.mesh.replica_group

    def get_data_parallel_rank(self) -> int:
        """Place among them."""
        return self.mesh.replica_group.rank()

    def get_data_parallel_world_size(self) -> int:
        """How many they are."""
        return self.mesh.degrees.replicas

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Ranks that together hold one copy of the model: all tensor slices of all stages."""
        return self.mesh.model_group

    def get_model_parallel_rank(self) -> int:
        """Place among them."""
        return self.mesh.model_group.rank()

    def get_model_parallel_world_size(self) -> int:
        """How many they are."""
        return self.mesh.model_group.size()

    def get_tensor_model_parallel_rank(self) -> int:
        """Tensor-parallel index: replicated parameters count in norms where it is 0."""
        return self.mesh.index("tp")

    def get_tensor_model_parallel_world_size(self) -> int:
        """Tensor-parallel degree."""
        return self.mesh.degrees.tp
