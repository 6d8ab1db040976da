"""Holm's correction: with several methods looked at, one of them is significant by chance more often than 5 % allow."""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order; those up to 0.05 keep the chance of any false finding at 5 %.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
