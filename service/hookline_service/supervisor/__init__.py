"""The processes around nodes: event loops, signals, limits, restarts.

`node` runs one node in this process, and forbids core dumps. `workers` runs several processes
behind one `port`, each of them a node, and restarts those that end: `worker_process` is the
supervisor's side of one, `worker` the process's own side. Independent of the parts of a node.
"""

from hookline_service.supervisor.node import forbid_core_dumps, run_node
from hookline_service.supervisor.worker import run_worker
from hookline_service.supervisor.workers import run_workers

__all__ = ["forbid_core_dumps", "run_node", "run_worker", "run_workers"]
