"""The published cells of DARTS and sharpDARTS, the stronger edge of a node first.

Source:
    Liu et al. (2019), arXiv:1806.09055 (``DARTS_V2``); Hundt et al. (2019),
    arXiv:1903.09900, with the official code's genotypes. With 20 cells of 36 channels on
    CIFAR-10 they have 3,349,342 (DARTS), 3,529,270 (the same cell with SharpSepConv) and
    3,555,622 (SharpSepConvDARTS) parameters.
"""

from __future__ import annotations

from nas.spaces.darts import Genotype

DARTS = Genotype.parse(
    "normal: sep_conv_3x3(0) + sep_conv_3x3(1) | sep_conv_3x3(0) + sep_conv_3x3(1)"
    " | sep_conv_3x3(1) + skip_connect(0) | skip_connect(0) + dil_conv_3x3(2);"
    " reduce: max_pool_3x3(0) + max_pool_3x3(1) | skip_connect(2) + max_pool_3x3(1)"
    " | max_pool_3x3(0) + skip_connect(2) | skip_connect(2) + max_pool_3x3(1)"
)
"""The cell that DARTS found with second-order steps."""

DARTS_SHARP = Genotype.parse(
    str(DARTS).replace("sep_conv", "sharp_sep_conv").replace("dil_conv", "sharp_dil_conv")
)
"""The cell of DARTS with SharpSepConv for its separable and dilated convolutions."""

SHARPSEPCONV_DARTS = Genotype.parse(
    "normal: sharp_sep_conv_3x3(0) + sharp_sep_conv_3x3(1)"
    " | sharp_sep_conv_3x3(0) + sharp_sep_conv_3x3(2)"
    " | skip_connect(0) + sharp_sep_conv_3x3(1) | skip_connect(0) + sharp_sep_conv_3x3(1);"
    " reduce: max_pool_3x3(0) + skip_connect(1) | skip_connect(2) + avg_pool_3x3(0)"
    " | skip_connect(2) + avg_pool_3x3(0) | skip_connect(2) + skip_connect(3)"
)
"""The cell that DARTS found with SharpSepConv in its space (``ops="sharp-darts"``)."""
