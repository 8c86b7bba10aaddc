"""Statistics: confidence intervals and p values of means and of differences.

In: similarities of several people, training seeds and prompts. Out: means with 95% intervals, p values, Holm's
correction for several comparisons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bootstrap:
    """A paired comparison of a with b."""

    difference: float  # mean of a - b
    low: float  # 95% interval
    high: float
    p: float  # two-sided
    people: int
    pairs: int

    @property
    def significant(self) -> bool:
        return self.p < 0.05 and not self.low <= 0 <= self.high


def cluster_bootstrap(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Bootstrap:
    """Mean of `values` (people, training seeds, prompts, pictures per prompt) with a 95% interval; NaN counts as 0.

    People are drawn with replacement, within each their training seeds, within each its prompts; pictures of one
    prompt stay together, since they are not independent. A level with one member is kept as it is: the
    interval then says nothing about it. For a comparison give the paired differences; `p` is two-sided against 0.
    Percentile interval; p = 2 * the smaller tail, with the observed data counted in (Davison & Hinkley 1997, 4.4),
    so it is never below 2 / (resamples + 1). The same `seed` gives the same result.
    """
    data = np.nan_to_num(np.asarray(values, np.float64), nan=0.0)
    if data.ndim != 4 or not data.size:
        raise ValueError(f"values are (people, seeds, prompts, pictures), not {data.shape}")
    people, seeds, prompts, _ = (int(size) for size in data.shape)
    cells = data.mean(3)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    if cells.size == max(cells.shape):  # one level alone is drawn: the same numbers, many at once
        chunk = max(1, 2_000_000 // cells.size)  # about 16 MB of indices
        for start in range(0, resamples, chunk):
            which = rng.integers(cells.size, size=(min(chunk, resamples - start), cells.size))
            means[start : start + len(which)] = cells.ravel()[which].mean(1)
        return _bootstrapped(data, means)
    for k in range(resamples):
        who = rng.integers(people, size=people)[:, None, None]
        trained = rng.integers(seeds, size=(people, seeds))[:, :, None]
        which = rng.integers(prompts, size=(people, seeds, prompts))
        means[k] = cells[who, trained, which].mean()
    return _bootstrapped(data, means)


def paired_bootstrap(
    a: Sequence[Sequence[float]] | Sequence[float] | np.ndarray,
    b: Sequence[Sequence[float]] | Sequence[float] | np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Bootstrap:
    """Is a better than b? Both hold one number per (person, seed), or per seed for one person; NaN (no face) is 0.

    Pairs stay pairs: it is `cluster_bootstrap` of the differences with one prompt of one picture.
    """
    first, second = (np.nan_to_num(np.atleast_2d(np.asarray(x, np.float64)), nan=0.0) for x in (a, b))
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise ValueError(f"a and b must be of one shape (people, seeds), not {first.shape} and {second.shape}")
    return cluster_bootstrap((first - second)[:, :, None, None], resamples=resamples, seed=seed)


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p of a paired difference: how often flipping the signs at random gives a mean as far from 0.

    Exact up to 14 differences (Fisher 1935). With fewer than 6 it is never below 0.05, however large they are: a
    bootstrap of so few does not know that.
    """
    found = np.asarray(differences, np.float64)
    return 1.0 if found.size < 2 or not found.any() else _permuted(found, np.zeros_like(found), "samples")


def difference_of_groups(
    a: Sequence[float], b: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> Bootstrap:
    """Mean of group a minus mean of group b, one value per person and at least one person in each.

    The interval resamples the people of each group; p is of an exact permutation of who is in which group (Fisher
    1935; sampled where there are more than 20,000), 1 where a group is one person. `pairs` is 0: nobody is in both.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not first.size or not second.size:
        raise ValueError("each group needs at least one person")
    rng = np.random.default_rng(seed)
    means = [each[rng.integers(each.size, size=(resamples, each.size))].mean(1) for each in (first, second)]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    p = _permuted(first, second, "independent") if min(first.size, second.size) > 1 else 1.0
    people = first.size + second.size
    return Bootstrap(float(first.mean() - second.mean()), float(low), float(high), p, people, 0)


def _permuted(a: np.ndarray, b: np.ndarray, kind: str) -> float:
    from scipy.stats import permutation_test

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis) - y.mean(axis)

    found = permutation_test(
        (a, b), difference, permutation_type=kind, vectorized=True, n_resamples=20_000, rng=np.random.default_rng(0)
    )
    return float(found.pvalue)


def _bootstrapped(observed: np.ndarray, means: np.ndarray) -> Bootstrap:
    """Percentile interval and two-sided p of the resampled `means`; `observed` has people first."""
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Bootstrap(
        difference=float(observed.mean()),
        low=float(low),
        high=float(high),
        p=min(1.0, 2.0 * (tail + 1) / (len(means) + 1)),
        people=len(observed),
        pairs=observed.size,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the order given: significant at 5% where the result is below 0.05."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = highest
    return adjusted


def known_mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
