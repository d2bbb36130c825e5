"""Freed blocks stay with the process, so that a step touches no new pages."""

import ctypes
import os
import resource
import subprocess
import sys

import pytest

from megatron_ngpt.mesh.allocator import keep_freed_memory

SIZE = 24 << 20
PAGES = 5 * 3 * SIZE // resource.getpagesize()
PROGRAM = f"""
import resource, torch
from megatron_ngpt.mesh.allocator import keep_freed_memory
if KEEP: assert keep_freed_memory({{}})
def fill(): return [torch.empty({SIZE}, dtype=torch.uint8).fill_(1) for _ in range(3)]
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12): fill()
before = faults()
for _ in range(5): fill()
print(faults() - before)
"""
glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's malloc only")


def _page_faults(keep: bool, **environment: str) -> int:
    program = PROGRAM.replace("KEEP", str(keep))
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=env)
    return int(done.stdout)


@glibc
def test_blocks_freed_and_taken_again_cost_no_page_faults():
    assert _page_faults(keep=True) < PAGES / 20
    # some where every block is mapped, be it of huge pages; without this threshold it depends on
    # where blocks happen to lie
    assert _page_faults(keep=False, MALLOC_MMAP_THRESHOLD_=str(1 << 20)) > PAGES / 600


@pytest.mark.parametrize(
    "env", [{"MALLOC_TRIM_THRESHOLD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}]
)
def test_what_the_user_set_up_is_left_alone(env):
    assert not keep_freed_memory(env)
