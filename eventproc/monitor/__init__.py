"""The monitor: a child of the supervisor that serves /healthz, /readyz and /metrics from the board."""
