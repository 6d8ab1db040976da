"""Experiments side by side: how cores are dealt, and the order of the page. Whole suites run in test_paper.py."""

import pytest

from pipelines.suite import in_the_papers_order, shares


@pytest.mark.parametrize(
    ("cores", "places", "expected"),
    [
        ([0, 1], 4, [[0], [1]]),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ([2, 5, 7], 2, [[2], [5]]),
        ([3], 4, [None]),
        ([0, 1, 2, 3], 1, [None]),
        ([], 4, [None]),
    ],
)
def test_cores_are_dealt_disjoint_and_equal(cores, places, expected):
    assert shares(places, cores) == expected


def test_the_page_lists_tables_then_figures_then_the_rest():
    names = ["fig4b", "table3", "mismatch", "table1", "logit_shift", "fig1"]
    assert in_the_papers_order(names) == ["table1", "table3", "fig1", "fig4b", "logit_shift", "mismatch"]
