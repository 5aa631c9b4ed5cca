"""ProxylessNAS: a search on the target task that trains one path at a time."""

from nas.methods.proxyless.costs import (
    CostTable,
    Layer,
    latency_tensor,
    layers,
    parse_latencies,
)
from nas.methods.proxyless.search import Proxyless

__all__ = ["CostTable", "Layer", "Proxyless", "latency_tensor", "layers", "parse_latencies"]
