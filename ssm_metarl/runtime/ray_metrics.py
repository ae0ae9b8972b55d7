"""`RayMetrics`: a run's numbers among those of its Ray cluster, where Prometheus and Ray's dashboard find them.

Each is a line of Ray's end points, ``ray_ssm_metarl_iteration_s{run="first"} 1.9``; docs/metrics.md has them all.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from ssm_metarl.runtime.metrics import Record, Sink

PREFIX = "ssm_metarl_"
GAUGES = {
    "iteration": "Iterations done",
    "return_pre_adaptation": "Mean return before adaptation, on training tasks",
    "return_post_adaptation": "Mean return after adaptation, on training tasks",
    "held_out_return_pre": "Mean return before adaptation, on held-out tasks",
    "held_out_return_post": "Mean return after adaptation, on held-out tasks",
    "grad_norm": "Norm of the meta-gradient before clipping",
    "iteration_s": "Seconds of an iteration",
    "env_steps_per_s": "Environment steps per second",
    "waiting_s": "Seconds of all workers together in which they had nothing to do, in an iteration",
    "workers": "Workers wanted",
}
COUNTERS = {
    "respawns": ("respawn", "Workers replaced"),
    "retries": ("retry", "Calls tried again"),
    "failed_saves": ("save_failed", "Checkpoints that could not be written"),
}
"""Name -> the event that it counts, and its meaning."""


class RayMetrics(Sink):
    """Tells Ray.

    Args:
        run: the run's name; every metric has it as its tag ``run``.
    """

    def __init__(self, run: str) -> None:
        tags = {"run": run}
        self._gauges = {name: Gauge(PREFIX + name, text, ("run",)) for name, text in GAUGES.items()}
        self._counters = {event: Counter(PREFIX + name, text, ("run",)) for name, (event, text) in COUNTERS.items()}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags(tags)

    def iteration(self, record: Record) -> None:
        self._set(record | {"iteration": record["iteration"] + 1})

    def evaluation(self, iteration: int, returns: dict[str, float]) -> None:
        self._set({f"held_out_return_{name}": value for name, value in returns.items()})

    def event(self, event: Record) -> None:
        if event["event"] in self._counters:
            self._counters[event["event"]].inc()

    def _set(self, values: Record) -> None:
        for name in values.keys() & self._gauges.keys():
            self._gauges[name].set(float(values[name]))
