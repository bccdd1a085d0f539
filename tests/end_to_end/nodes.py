"""A Ray cluster of two nodes on this machine, in a process of its own.

Prints the address and the process ids of both raylets as one line of JSON; then obeys words on its standard input:
``leave`` kills the second node, ``join`` starts another one. It ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from ray.cluster_utils import Cluster

HEAD, SECOND = {"seat": 1, "home": 4}, {"seat": 1}
"""Resources: each node has one seat, and the head is home."""


def start(cluster: Cluster, resources: dict[str, int], faults: dict[str, str]) -> Any:
    """One more node, whose actors meet the faults."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    return cluster.add_node(num_cpus=2, resources=resources, object_store_memory=80 * 2**20, include_dashboard=False,
                            env_vars={**environment, **faults})


def raylet(node: Any) -> int:
    """Process id of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid)


def main() -> None:
    """Start two nodes and obey."""
    faults = json.loads(sys.argv[1])
    cluster = Cluster()
    head, second = start(cluster, HEAD, {}), start(cluster, SECOND, faults)
    print(json.dumps({"address": cluster.address, "head": raylet(head), "second": raylet(second)}), flush=True)
    for word in sys.stdin:
        if word.strip() == "leave":
            cluster.remove_node(second, allow_graceful=False)
        else:
            second = start(cluster, SECOND, faults)
        print(json.dumps({"second": raylet(second) if word.strip() == "join" else 0}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
