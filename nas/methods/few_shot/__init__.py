"""Few-shot search: a supernet split into several, at one edge or by gradient matching."""

from nas.methods.few_shot.methods import FewShot, GmNas

__all__ = ["FewShot", "GmNas"]
