"""Coefficients from measured steps: few numbers, none negative, moved by no stall.

Least squares of relative errors with Huber's weights (reweighted a few times), so that a step that
took ten times too long pulls no more than one that is a little off; a ridge towards the prior,
scaled to the speed that was measured, holds what no step has told anything about. The non-negative
solution is that of Bro and de Jong (J. Chemometrics 11, 1997), on the normal equations: the cost
grows with the terms, hardly with the steps.
"""

from __future__ import annotations

import numpy as np

from router.latency.terms import FIXED, ROWS, Floats

ROUNDS = 3  # each fit goes on from the one before
HUBER = 1.2  # deviations within which a step counts in full
LEAST_SPREAD = 0.01  # relative; below this errors are as good as none
RIDGE = 0.1  # steps that the prior of each term weighs as much as
LEAST_FIXED = 0.01  # of the prior's: no step takes no time
RAISED = 0.02  # of the typical time: the scale of a term that the prior takes to be free,
SECOND = 1.0  # and that of a step's second token: with it products have other kernels


def fit(terms: Floats, seconds: Floats, weights: Floats, prior: Floats, last: Floats) -> Floats:
    """`terms` [steps, T], `seconds` and `weights` [steps], `prior` and the `last` solution [T]; at
    least one step."""
    ratio = _median(seconds / (terms @ prior), weights)
    centre = prior * ratio
    # The scale of a coefficient is the prior's, or where that is free what its term would need to
    # explain a small part of a step.
    seen = terms.sum(axis=0)
    typical = np.divide(seconds.sum(), seen, out=np.zeros_like(seen), where=seen > 0)
    raised = np.full(len(prior), RAISED)
    raised[ROWS.start] = SECOND
    scale = np.maximum(centre, raised * typical)
    scale[scale == 0.0] = 1.0  # free, and in no step: it stays 0
    x = terms * scale
    target, found = centre / scale, last / scale
    for _ in range(ROUNDS):
        predicted = x @ found
        off = np.log(seconds / predicted)
        spread = max(LEAST_SPREAD, 1.4826 * _median(np.abs(off), weights))
        huber = np.minimum(1.0, HUBER * spread / np.maximum(np.abs(off), 1e-12))
        x_w = x * (weights * huber / predicted**2)[:, None]
        gram = x_w.T @ x
        right = x_w.T @ seconds
        gram[np.diag_indices_from(gram)] += RIDGE
        found = nonnegative(gram, right + RIDGE * target, found)
        found[FIXED] = max(found[FIXED], LEAST_FIXED)
    return np.asarray(found * scale)


def nonnegative(gram: Floats, right: Floats, start: Floats) -> Floats:
    """The x >= 0 of least x.gram.x / 2 - right.x. `gram` is positive definite; `start` is a guess
    of which are above 0."""
    size = len(right)
    free = start > 0
    x = np.zeros(size)
    for _ in range(3 * size):
        candidate = np.zeros(size)
        if free.any():
            candidate[free] = np.linalg.solve(gram[np.ix_(free, free)], right[free])
        below = free & (candidate < 0)
        if below.any():
            # As far towards the candidate as nothing falls below 0; who does is bound there.
            step = np.min(np.where(below, x / np.maximum(x - candidate, 1e-300), 1.0))
            x = np.maximum(x + step * (candidate - x), 0.0)
            free &= ~(below & (x <= 1e-12 * np.abs(candidate)))
            continue
        x = candidate
        pull = right - gram @ x
        pull[free] = 0.0
        worst = int(np.argmax(pull))
        if pull[worst] <= 1e-9 * abs(right[worst]):
            break
        free[worst] = True
    return x


def _median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
