"""What a network costs before it is trained, and what a search would span."""

from nas.cost.analytic import Cost, cost
from nas.cost.feasibility import Preview, Spread, preview

__all__ = ["Cost", "Preview", "Spread", "cost", "preview"]
