"""Two machines of a Ray cluster, both this one: prints the head's address and each node's raylet, and ends with its input."""

import json
import os
import sys

# Ray's workers are as nice as can be otherwise, and never begin on a machine that others use too
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}

from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster


def started(tries=5):
    """Ray gives a node 30 seconds to begin, which a busy machine may not have."""
    cluster, bare = Cluster(), {"num_cpus": 1, "include_log_monitor": False}
    try:
        return cluster, [cluster.add_node(include_dashboard=False, no_monitor=True, **bare), cluster.add_node(**bare)]
    except Exception:
        cluster.shutdown()
        if tries == 1:
            raise
        return started(tries - 1)


cluster, nodes = started()
raylets = {node.node_id: node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid for node in nodes}
sys.stdout.write(json.dumps({"address": cluster.address, "raylets": raylets}) + "\n")
sys.stdout.flush()
sys.stdin.read()
cluster.shutdown()
