"""Started by real launchers: join, add up ranks + 1 over dp, tell, end with the code asked for.

python hello.py EXIT_CODE
"""

import sys

import torch
import torch.distributed as dist

from megatron_ngpt.config import ParallelConfig
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import finish, pick_device, read_launch, start, without_local_rank
from megatron_ngpt.mesh.mesh import Mesh

words = without_local_rank(sys.argv[1:])
launch = read_launch()
device = pick_device("cpu", launch.local_rank)
start(launch, device)
mesh = Mesh.build(Degrees.of(ParallelConfig(), launch.world_size), device)
total = torch.tensor(mesh.rank + 1)
dist.all_reduce(total, group=mesh.group("dp"))
sys.stdout.write(f"rank {mesh.rank} local {launch.local_rank} sum {int(total)} words {words}\n")
finish(int(words[0]) if mesh.rank == 1 else 0)
