"""Chains that share blocks, run together: batched wherever they meet."""

from serving.engine.engine import Engine
from serving.engine.types import EngineBlock, EngineLimits, EngineStats, SegmentStats

__all__ = ["Engine", "EngineBlock", "EngineLimits", "EngineStats", "SegmentStats"]
