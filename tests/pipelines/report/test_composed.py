"""The rows that a report expects are the cells that its experiment file makes."""

import json

import pytest

from pipelines.chain.run import excluded, unmeasured
from pipelines.record import read_record
from pipelines.report.registry import Sweep, find_report
from pipelines.typed import to_json
from tests.pipelines.composing import hydra_conf, sweep_of  # noqa: F401

EXPERIMENTS = ["table1", "table3", "table4", "table5", "table6", "table7", "fig1", "fig3a", "fig3b", "fig3c", "fig4a",
               "fig4b", "logit_shift", "mismatch", "appendix_b1"]  # fmt: skip


def failures(experiment: str, scale: str):
    """A record of every cell of an experiment as the pipeline writes it when all of them fail."""
    records = []
    for own, config in sweep_of(experiment, scale):
        reason = excluded(config)
        record = unmeasured(config, "failed" if reason is None else "excluded", reason or "stopped", own)
        records.append(read_record(json.loads(json.dumps(to_json(record))), experiment))
    return config.experiment, records


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_cell_is_a_row_that_the_report_does_not_know_and_no_row_lacks_its_cell(experiment):
    config, records = failures(experiment, "tiny")
    table = find_report(config.report)(Sweep(config.report, "", "tiny", records)).table
    assert table.rows and all(row.gap for row in table.rows)
    assert [row.name for row in table.rows if row.status == "missing"] == []
    assert [row.name for row in table.rows if "[" in row.key[0]] == []
    made = sum(record.status == "failed" for record in records)
    # Table 3 and figure 4b put several cells into a row; table 3 also lists three of them again.
    want = {"table3": 6, "fig4b": 12}.get(experiment, made)
    assert len(table.rows) == want
