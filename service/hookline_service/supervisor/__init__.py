"""The processes around nodes: their event loops, their signals, their end.

`node` runs one node in this process; `workers` runs several processes behind one `port`, each of
them a node (`worker` is their side of it), and starts anew what dies; `hardening` forbids
core dumps. Must not know what a node is made of.
"""

from hookline_service.supervisor.hardening import forbid_core_dumps
from hookline_service.supervisor.node import run_node
from hookline_service.supervisor.worker import run_worker
from hookline_service.supervisor.workers import run_workers

__all__ = ["forbid_core_dumps", "run_node", "run_worker", "run_workers"]
