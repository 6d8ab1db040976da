"""The whole of a sweep: its cells in the experiment's order, and stand-ins for those that left no record."""

import pytest

from pipelines.report.sweep import whole_sweep
from tests.pipelines.report import records
from tests.pipelines.report.records import content


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_cell_that_left_no_record_is_known_by_its_line(lost):
    cells = records.fig3b()
    made = whole_sweep(cells[:lost] + cells[lost + 1 :])
    name = "alpha" if lost <= 6 else "beta"
    assert len(made) == 12 and made[lost].status == "missing" and not made[lost].tasks
    assert made[lost].setting(f"calibrate.{name}") == pytest.approx(cells[lost].setting(f"calibrate.{name}"))
    assert [one.key for one in content(made).table.rows] == [one.key for one in content(cells).table.rows]


def test_cells_come_in_the_order_of_the_lines():
    cells = records.fig4b()
    assert whole_sweep(cells[::-1]) == whole_sweep(cells) == cells


def test_a_cell_of_which_nothing_is_known_is_left_out():
    cells = records.fig3c()
    assert whole_sweep(cells[:3] + cells[4:]) == cells[:3] + cells[4:]


def test_cells_without_lines_or_repeated_ones_stay_as_they_are():
    cells = records.table7()
    assert whole_sweep(cells[1:]) == cells[1:]
    twice = records.table4() + records.table4()[:1]
    assert whole_sweep(twice) == twice


def test_a_values_order_in_the_table_is_not_that_of_the_sweep():
    rows = content(records.fig3b()[::-1]).table.rows
    assert [row.key[1] for row in rows] == [
        "",
        "0.1",
        "0.3",
        "0.5",
        "0.7",
        "0.9",
        "1",
        "0.001",
        "0.01",
        "0.1",
        "1",
        "10",
    ]
