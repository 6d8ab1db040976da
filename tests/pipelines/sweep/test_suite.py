"""The order of the page of all experiments. Whole suites run in test_paper.py."""

from pipelines.sweep.suite import in_the_papers_order


def test_the_page_lists_tables_then_figures_then_the_rest():
    names = ["fig4b", "table3", "mismatch", "table1", "logit_shift", "fig1"]
    assert in_the_papers_order(names) == ["table1", "table3", "fig1", "fig4b", "logit_shift", "mismatch"]
