"""Few-shot search: a supernet split into several, at one edge or by gradient matching."""

from nas.methods.few_shot.matching import matching_distances, matching_scores, mean_distances
from nas.methods.few_shot.methods import FewShot, GmNas
from nas.methods.few_shot.partition import best_partition, choose_edge, edge_score
from nas.methods.few_shot.plan import Schedule
from nas.methods.few_shot.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "FewShot",
    "GmNas",
    "Schedule",
    "best_partition",
    "choose_edge",
    "edge_score",
    "matching_distances",
    "matching_scores",
    "mean_distances",
    "preset",
]
