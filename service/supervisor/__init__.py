"""The processes around nodes: their event loops, their signals, their end.

`node` runs one node in this process; `workers` runs several processes behind one `port`, each of
them a node (`worker` is their side of it), and starts anew what dies. Must not know what a node is
made of.
"""

from service.supervisor.node import run_node
from service.supervisor.worker import run_worker
from service.supervisor.workers import run_workers

__all__ = ["run_node", "run_worker", "run_workers"]
