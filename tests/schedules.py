"""Pipeline schedules that this torch runs on a CPU: zbv from 2.13 on, refused before."""

from megatron_ngpt.parallel.pipeline import nodes_live_on

ZBV = "zbv" if nodes_live_on() else "zero_bubble"
"""The V schedule, or its nearest kin where it is refused."""

SCHEDULES = tuple(dict.fromkeys(("1f1b", "interleaved", "zero_bubble", ZBV)))
