"""How much a candidate promises: expected improvement of a reward that is uncertain in accuracy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """log E[max(reward - best, 0)] of normal rewards, exact far below `best` too, where the expectation underflows.

    With z = (mean - best) / deviation it is log(φ(z) + zΦ(z)) + log deviation; below -1 by
    log φ(z) + log(1 + z·√(π/2)·erfcx(-z/√2)) (arXiv 2310.20708, equation 9).
    """
    from scipy.special import erfcx, ndtr

    z = (mean - best) / deviation
    log_density = -0.5 * z * z - 0.5 * np.log(2 * np.pi)
    near, far = np.maximum(z, -1), np.minimum(z, -1)
    close = np.log(np.exp(-0.5 * near * near) / np.sqrt(2 * np.pi) + near * ndtr(near))
    # Rounding leaves nothing of 1 + … beyond -1e7, where it is 1/z².
    distant = log_density + np.log(np.maximum(1 + far * np.sqrt(np.pi / 2) * erfcx(-far / np.sqrt(2)), 1e-15))
    return np.asarray(np.where(z > -1, close, distant) + np.log(deviation))
