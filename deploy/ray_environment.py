"""How Ray Serve is tuned: by variables that its processes read as they start, so set before Ray starts.

On a cluster that others start (KubeRay, `ray start`), set `RAY_SERVE_ENVIRONMENT` on every node yourself;
without it all works, a search takes some milliseconds more, and a replica that hangs is replaced later.
"""

import os

RAY_SERVE_ENVIRONMENT = {
    # Requests stay on one event loop in each process instead of passing between threads (we block none).
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # From proxy to ingress as between deployments: by gRPC, not through the object store.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # A replica that stands still cannot stop gracefully: it is killed.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}

# Serve's proxy gives a request up after so long, whatever becomes of the ingress that has it: the longest
# deadline and the time that a body may take are less.
REQUEST_TIMEOUT_S = 160.0


def tune_ray_serve() -> None:
    """Sets what is not set yet, for the Ray that this process starts."""
    for name, value in RAY_SERVE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
