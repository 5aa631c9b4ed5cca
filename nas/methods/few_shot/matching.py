"""How much the gradients of several operations on one edge disagree: the matrix D.

Source:
    Hu et al. (2022), "Generalizing Few-Shot NAS with Gradient Matching", ICLR 2022,
    arXiv:2203.15207; official code github.com/skhu101/GM-NAS.

Notation: g_i, a row of ``gradients`` ``(operations, parameters)``, is the gradient of the
loss with respect to all shared parameters but those of edge e, with e set to operation i.
The gradient-matching score is GM_ij = <g_i, g_j> / (|g_i| |g_j|), the distance
D_ij = 1 - GM_ij.

Differs from the official code, on purpose:

- One product of the matrix of gradients with itself gives all pairs; the original
  concatenates both gradients anew for every pair.
- Nothing absolute is added to the denominator: its 1e-6 makes identical gradients of small
  scale disagree (D = 0.73 at 1e-4). A gradient of zeros, which points nowhere, agrees with
  no other (D = 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from zoo.errors import InvalidInputError, UnknownNameError

_SAFE = (2.0**-60, 2.0**90)
"""Squares outside may have lost small entries, or overflowed, in float32."""

_BLOCK = 16_384
"""Columns that are multiplied at a time on a CPU: a block stays in its cache."""


def gram_matrix(gradients: Tensor) -> Tensor:
    """Return all inner products ``(n, n)``, float64, of the rows ``(n, parameters)``.

    It is one product of the matrix with itself, on a CPU in blocks that are summed in
    float64: twice as fast there as in one piece, and more exact.
    """
    if gradients.device.type != "cpu":
        return (gradients @ gradients.T).double()
    total = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for block in torch.split(gradients, _BLOCK, dim=1):
        total += block @ block.T
    return total


def matching_scores(gradients: Tensor) -> Tensor:
    """Return GM ``(n, n)``: the cosine of every two rows of ``gradients``, at any scale.

    Args:
        gradients: ``(n, parameters)``; half precision is computed in float32.

    Returns:
        A symmetric matrix in [-1, 1], its diagonal 1.

    Raises:
        InvalidInputError: ``gradients`` is no matrix, or has entries that are not finite.
    """
    rows = _rows(gradients)
    if rows.shape[1] == 0:
        return torch.eye(len(rows), dtype=rows.dtype)
    products = gram_matrix(rows)
    squares = products.diagonal()
    if not bool(((squares > _SAFE[0]) & (squares < _SAFE[1])).all()):
        products = gram_matrix(_scaled(rows))
    norms = products.diagonal().sqrt()
    safe = torch.where(norms > 0, norms, 1.0)
    scores = (products / safe.unsqueeze(0) / safe.unsqueeze(1)).clamp(-1, 1)
    # A product computed in blocks need not be symmetric to the last bit.
    scores = (scores + scores.T) / 2
    return scores.fill_diagonal_(1.0).to(rows.dtype)


def matching_distances(gradients: Tensor) -> Tensor:
    """Return D = 1 - GM ``(n, n)``, in [0, 2] with zeros on the diagonal."""
    return 1 - matching_scores(gradients)


def squared_distances(gradients: Tensor) -> Tensor:
    """Return the squared Euclidean distance of every two rows, ``(n, n)``.

    It is the alternative ``mse``, the sum over parameters as in the official code.
    """
    rows = _rows(gradients)
    products = gram_matrix(rows)
    squares = products.diagonal()
    found = (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * products).clamp_min(0)
    return ((found + found.T) / 2).fill_diagonal_(0.0).to(rows.dtype)


def filter_distances(gradients: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
    """Return the sum over filters of 1 - cosine of every two rows, ``(n, n)``.

    A filter is all that leads to one output of a weight of two or more dimensions; vectors
    (biases, scales) count for nothing, as in the official code.

    Args:
        gradients: ``(n, parameters)``, the tensors of ``shapes`` flattened side by side.
        shapes: Of the parameters, in their order.
    """
    rows = _rows(gradients)
    total = rows.new_zeros(len(rows), len(rows))
    at = 0
    for shape in shapes:
        size = shape.numel()
        if len(shape) > 1:
            filters = rows[:, at : at + size].reshape(len(rows), shape[0], -1).transpose(0, 1)
            norms = torch.linalg.vector_norm(filters, dim=2, keepdim=True)
            unit = filters / torch.where(norms > 0, norms, 1.0)
            total += (1 - unit @ unit.transpose(1, 2)).sum(0)
        at += size
    return ((total + total.T) / 2).clamp_min(0).fill_diagonal_(0.0)


DISTANCES: Mapping[str, Callable[[Tensor, Sequence[torch.Size]], Tensor]] = {
    "cosine": lambda gradients, _: matching_distances(gradients),
    "mse": lambda gradients, _: squared_distances(gradients),
    "filter-cosine": filter_distances,
}
"""Name → distances of rows ``(n, parameters)`` of parameters of the given shapes."""


def distance(name: str) -> Callable[[Tensor, Sequence[torch.Size]], Tensor]:
    """Return the distance called ``name``.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in DISTANCES:
        raise UnknownNameError("distance of gradients", name, DISTANCES)
    return DISTANCES[name]


def mean_distances(batches: Iterable[Tensor]) -> Tensor:
    """Return the mean in float64 of the matrices of several batches.

    Raises:
        InvalidInputError: There is no batch.
    """
    found = [matrix.double() for matrix in batches]
    if not found:
        raise InvalidInputError("no batch was measured; measure one at least")
    return torch.stack(found).mean(0)


def _scaled(rows: Tensor) -> Tensor:
    """Return the rows with a largest entry of 1; rows of zeros stay as they are."""
    peaks = torch.linalg.vector_norm(rows, ord=float("inf"), dim=1)
    if not bool(torch.isfinite(peaks).all()):
        raise InvalidInputError("a gradient is not finite; lower the learning rate")
    return rows / torch.where(peaks > 0, peaks, 1.0).unsqueeze(1)


def _rows(gradients: Tensor) -> Tensor:
    if gradients.ndim != 2 or len(gradients) == 0:
        raise InvalidInputError(
            f"gradients have shape {tuple(gradients.shape)}; give one row an operation"
        )
    wide = gradients.dtype in (torch.float32, torch.float64)
    return gradients if wide else gradients.float()
