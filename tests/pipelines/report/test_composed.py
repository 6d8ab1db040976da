"""The rows that a report expects are the cells that its experiment file makes."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pipelines import schema
from pipelines.cell import excluded, failed, identity
from pipelines.cells import expand
from pipelines.cli import CONF
from pipelines.report.registry import Sweep, find_report

EXPERIMENTS = ["table1", "table3", "table4", "table5", "table6", "table7", "fig1", "fig3a", "fig3b", "fig3c", "fig4a",
               "fig4b", "logit_shift", "mismatch"]  # fmt: skip


@pytest.fixture(autouse=True)
def hydra_conf():
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def failures(experiment: str, scale: str):
    """A record of every cell of an experiment as the pipeline writes it when all of them fail."""
    chosen = [f"+experiment={experiment}", f"scale={scale}"]
    sweep = compose("config", overrides=chosen, return_hydra_config=True)
    params = OmegaConf.to_container(sweep.hydra.sweeper.params, resolve=True)
    lines = list(sweep.experiment.cells) or [" ".join(f"{key}={value}" for key, value in params.items())]
    records = []
    for own in expand(lines):
        config = OmegaConf.to_object(compose("config", overrides=[*chosen, *own]))
        reason = excluded(config)
        record = failed(config, "stopped") if reason is None else {**identity(config), "error": reason}
        records.append({**record, "status": "failed" if reason is None else "excluded", "overrides": own})
    return sweep.experiment, records


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_cell_is_a_row_that_the_report_does_not_know_and_no_row_lacks_its_cell(experiment):
    config, records = failures(experiment, "tiny")
    table = find_report(config.report)(Sweep(config.report, "", "tiny", records)).table
    assert table.rows and all(row.gap for row in table.rows)
    assert [row.name for row in table.rows if row.status == "missing"] == []
    assert [row.name for row in table.rows if "[" in row.key[0]] == []
    made = sum(record["status"] == "failed" for record in records)
    # Table 3 and figure 4b put several cells into a row; table 3 also lists three of them again.
    want = {"table3": 6, "fig4b": 12}.get(experiment, made)
    assert len(table.rows) == want
