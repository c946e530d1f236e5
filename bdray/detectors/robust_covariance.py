"""Covariance of samples of which a part may be anything: the filter of Diakonikolas et al. (2016, arXiv 1604.06443,
algorithm 4), with the constants and the limit on what it takes out of Hayase et al. (2021, arXiv 2104.11315)."""

from __future__ import annotations

import math

import numpy as np

FAR, FAILURE, SHIFT = 10.0, 0.1, 3.0
"""C; tau; by how much less than it is a deviation counts."""
PRECISION = 1e-6
"""Of the largest eigenvalue, relative."""
RANK = 1e-10
"""Of the largest variance: what varies less counts as this much here, and is left out by detectors that can do so."""


def undisturbed(samples: np.ndarray, part: float, most: int) -> np.ndarray:
    """Which samples the covariance is to be estimated from: bool, `n`.

    Args:
        samples: centred, float64, `n x d`, with `d` at least 2.
        part: of the samples that may be anything: the epsilon of the filter, below 1.
        most: how many are taken out at most.
    """
    rows = np.arange(len(samples))
    while most > 0:
        found = filtered(samples[rows], part)
        if found is None:
            break
        suspicion, within = found
        # However many lie outside: no more than may be taken out, the farthest first.
        within |= suspicion <= np.sort(suspicion)[max(0, len(rows) - most) - 1]
        most -= int((~within).sum())
        rows = rows[within]
    kept = np.zeros(len(samples), dtype=np.bool_)
    kept[rows] = True
    return kept


def filtered(samples: np.ndarray, part: float) -> tuple[np.ndarray, np.ndarray] | None:
    """How far each sample is off, and which are not too far: float64 and bool, `n`; None: all may stay.

    Args:
        samples: centred, float64, `n x d`.
    """
    count, size = samples.shape
    white = whitened(samples, samples.T @ samples / count)
    lengths = np.square(white).sum(1)
    if (near := lengths < FAR * size * math.log(count / FAILURE)).sum() < count:
        return lengths, near
    variance, direction = most_varying_square(white)
    # The norm of the direction is 1: under a normal distribution its square has a variance of 2.
    if variance <= 1 + FAR * part * math.log(1 / part) ** 2:
        return None
    squares = np.einsum("nd,de,ne->n", white, direction, white, optimize=True) / math.sqrt(2)
    deviations = np.abs(squares - np.median(squares))
    ascending = np.sort(deviations)
    at_least = 1 - np.arange(count) / count
    for deviation, share in zip(ascending, at_least, strict=True):
        if deviation > SHIFT and share >= allowed(deviation - SHIFT, part):
            return deviations, deviations <= deviation - SHIFT
    return None


def allowed(deviation: float, part: float) -> float:
    """Part of the samples that may deviate so much."""
    if deviation <= FAR * math.log(1 / part):
        return 1.0
    return 3 * part / (deviation * math.log(deviation)) ** 2


def most_varying_square(white: np.ndarray) -> tuple[float, np.ndarray]:
    """The symmetric matrix V of norm 1 for which y'Vy varies most, and its variance.

    Args:
        white: samples y, of which the mean of yy' is the identity: float64, `n x d`, with `d` at least 2.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    count, size = white.shape

    def covariance(flat: np.ndarray) -> np.ndarray:
        matrix = flat.reshape(size, size)
        squares = np.einsum("nd,nd->n", white @ matrix, white)
        product: np.ndarray = white.T @ ((squares - squares.mean())[:, None] * white) / count
        return product.ravel()

    operator = LinearOperator((size**2, size**2), matvec=covariance, dtype=np.float64)
    values, vectors = eigsh(operator, 1, v0=np.ones(size**2), tol=PRECISION)
    matrix = vectors[:, 0].reshape(size, size)
    symmetric = (matrix + matrix.T) / 2
    return float(values[0]), symmetric / np.linalg.norm(symmetric)


def whitened(samples: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Samples times the inverse root of a covariance: `n x d` and `d x d`."""
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(values.clip(max(RANK * values[-1], np.finfo(np.float64).tiny)))
    found: np.ndarray = samples @ (vectors / roots) @ vectors.T
    return found
