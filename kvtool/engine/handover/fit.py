"""What a transfer takes: alpha seconds a descriptor, and bytes over a bandwidth, fitted to timed transfers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Transfer:
    """One request's pages: descriptors (runs of bytes that go on their own), bytes and seconds, and how many of these
    were after the prompt was computed, so that its answer waited for them."""

    descriptors: int
    bytes: int
    seconds: float
    exposed_s: float


@dataclass(frozen=True, slots=True)
class Fit:
    """seconds = alpha_s * descriptors + bytes / bytes_per_s. None where the transfers do not tell."""

    alpha_s: float | None
    bytes_per_s: float | None


def fitted(transfers: Sequence[Transfer]) -> Fit:
    """Least squares of relative errors, neither term below zero."""
    rows = [t for t in transfers if t.seconds > 0 and t.bytes]
    if not rows:
        return Fit(None, None)
    seconds = np.array([t.seconds for t in rows])
    terms = np.array([(t.descriptors, t.bytes) for t in rows]) / seconds[:, None]
    if np.linalg.matrix_rank(terms) > 1:
        (alpha, beta), *_ = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)
        if alpha >= 0 and beta > 0:
            return Fit(float(alpha), float(1 / beta))
    per_byte = float(terms[:, 1].sum() / (terms[:, 1] ** 2).sum())  # a descriptor takes nothing that could be told
    return Fit(None, 1 / per_byte)
