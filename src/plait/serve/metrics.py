"""Prometheus metrics: what vLLM's dashboards ask for, and what only this model has.

Counts and pool sizes are read from the engine when somebody asks; latencies are observed as tokens
come. Every server has a registry of its own.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from plait.engine.request import EngineStats

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_GAUGES = {
    "num_requests_running": ("num_running", "Requests that are being read or answered"),
    "num_requests_waiting": ("num_waiting", "Requests that wait for room"),
    "kv_blocks_used": ("kv_blocks_used", "Blocks of the paged KV cache in use"),
    "kv_blocks": ("kv_blocks_total", "Blocks of the paged KV cache"),
    "state_slots_used": ("state_slots_used", "Slots for recurrent states in use"),
    "state_slots": ("state_slots_total", "Slots for recurrent states"),
}
_COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens taken in"),
    "generation_tokens": ("generated_tokens", "Tokens generated"),
    "reasoning_tokens": ("reasoning_tokens", "Tokens generated inside a thinking trace"),
    "forced_closes": ("forced_closes", "Traces that the thinking budget closed"),
    "prefix_cache_queries": ("prefix_query_tokens", "Prompt tokens looked up for reuse"),
    "prefix_cache_hits": ("prefix_hit_tokens", "Prompt tokens that were reused"),
    "num_preemptions": ("num_preemptions", "Requests that lost their room and start again"),
}


class Metrics:
    """The metrics of one server; `read_stats` gives the engine's numbers."""

    @dataclass
    class Timer:
        """When things happened to one request, in seconds of the monotonic clock."""

        started: float
        last_token: float | None = None
        num_tokens: int = 0

    def __init__(self, read_stats: Callable[[], EngineStats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(read_stats))
        histogram = {"registry": self.registry, "buckets": _SECONDS}
        self._first = Histogram(
            "plait_time_to_first_token_seconds", "From arrival to the first token", **histogram
        )
        self._between = Histogram(
            "plait_inter_token_latency_seconds", "Between two tokens of a request", **histogram
        )
        self._whole = Histogram(
            "plait_e2e_request_latency_seconds", "From arrival to the end", **histogram
        )
        self._ended = Counter(
            "plait_requests",
            "Requests that are over, by how they ended",
            ["finish_reason"],
            registry=self.registry,
        )

    def progressed(self, timer: "Metrics.Timer", num_tokens: int) -> None:
        """Note how many tokens a request has now."""
        if num_tokens == timer.num_tokens:
            return
        now = time.monotonic()
        if timer.last_token is None:
            self._first.observe(now - timer.started)
        else:
            self._between.observe((now - timer.last_token) / (num_tokens - timer.num_tokens))
        timer.last_token, timer.num_tokens = now, num_tokens

    def finished(self, timer: "Metrics.Timer", reason: str) -> None:
        """Note that a request is over."""
        self._whole.observe(time.monotonic() - timer.started)
        self._ended.labels(reason).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text form."""
        return generate_latest(self.registry)


class _EngineCollector:
    """Turns the engine's own counts into metrics."""

    def __init__(self, read_stats: Callable[[], EngineStats]) -> None:
        self._read_stats = read_stats

    def collect(self) -> Iterator[Metric]:
        stats = self._read_stats()
        for name, (attribute, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"plait_{name}", text, getattr(stats, attribute))
        for name, (attribute, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"plait_{name}", text, getattr(stats, attribute))
