"""Every operation is tested on the CPU, in both precisions, and on a GPU where there is one."""

import pytest
import torch

from megatron_ngpt.ops.fused import REFERENCE, Operations, pick_operations
from megatron_ngpt.ops.fused.build import NotBuilt, built


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    """Device under test."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request) -> torch.dtype:
    """Precision of the activations under test."""
    return request.param


@pytest.fixture(params=["reference", "cpp"])
def ops(request, device) -> Operations:
    """Implementation of the operations under test."""
    if request.param == "reference":
        return REFERENCE
    if device.type != "cpu":
        pytest.skip("cpp is for CPUs")
    try:
        built()
    except NotBuilt as err:
        pytest.skip(str(err))
    return pick_operations(request.param, device)
