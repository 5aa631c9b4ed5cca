"""The published cells of DARTS, PC-DARTS and sharpDARTS; ``zoo.networks`` has them by name.

Source:
    Liu et al. (2019), arXiv:1806.09055 (``DARTS_V2``); Xu et al. (2020), arXiv:1907.05737;
    Hundt et al. (2019), arXiv:1903.09900, with the official code's genotypes. With 20 cells of
    36 channels on CIFAR-10 they have 3,349,342 (DARTS), 3,634,678 (PC-DARTS), 3,529,270 (the
    cell of DARTS with SharpSepConv) and 3,555,622 (SharpSepConvDARTS) parameters.
"""

from __future__ import annotations

from nas.spaces.darts import Genotype
from zoo.networks import network

DARTS = Genotype.parse(network("darts-cifar").genotype)
"""The cell that DARTS found with second-order steps."""

PC_DARTS_CIFAR = Genotype.parse(network("pc-darts-cifar").genotype)
"""The cell that PC-DARTS found on CIFAR-10."""

PC_DARTS_IMAGENET = Genotype.parse(network("pc-darts-imagenet").genotype)
"""The cell that PC-DARTS found on ImageNet."""

DARTS_SHARP = Genotype.parse(
    str(DARTS).replace("sep_conv", "sharp_sep_conv").replace("dil_conv", "sharp_dil_conv")
)
"""The cell of DARTS with SharpSepConv for its separable and dilated convolutions."""

SHARPSEPCONV_DARTS = Genotype.parse(network("sharpdarts-cifar").genotype)
"""The cell that DARTS found with SharpSepConv in its space (``ops="sharp-darts"``)."""
