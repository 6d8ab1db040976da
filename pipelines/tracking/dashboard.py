"""The W&B workspace of `+experiment=dashboard`: routing by layer, the solver and accuracies, over a project's runs.

What it shows is built without a network (`build_workspace`), from the names that pipelines/tracking/runs.py logs; it is
published where runs go, and always written to `outputs/dashboard/workspace.json`.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from omegaconf import OmegaConf

from pipelines.config import Config, ExperimentConfig
from pipelines.config.merging import merge_options
from pipelines.places import CONF
from pipelines.report.tables.accuracy import Layout
from pipelines.tracking.runs import CALIBRATION, MEASURES, mode_of

log = logging.getLogger(__name__)

NAME = "HARC"
RESIDUALS = r"cg_residual/layer_\d+"
_RUNS = 50  # drawn in a panel; a table has at most 13 rows
_TITLES = {"kl": "Routing KL", "mismatch": "Decisions mismatched"}
_AXES = {"kl": "nats", "mismatch": "%"}
_SOLVER = {"iterations": "CG iterations", "seconds": "seconds", "kl_before": "KL before", "kl_after": "KL after"}
_TABLE = ["experiment_name", "scale_name", "method_name", "harc"]
_NUMBERS = ["accuracy/overall", "accuracy_ci95/overall", "routing_kl", "before/routing_kl", "mismatch"]


@dataclass(frozen=True)
class Choices:
    """What the filters above the runs offer, everything ticked: the values of three keys of a run's config."""

    experiments: Sequence[str]
    scales: Sequence[str]
    methods: Sequence[str]


def make_dashboard(config: Config) -> Path:
    """Builds the workspace of the project's runs, writes it, and publishes it when the tracker is online.

    Args:
        config: its tracker names project and entity, its scale the domains and benchmarks that have panels.

    Returns:
        The file that holds what was built.

    Raises:
        RuntimeError: W&B is to be used and doesn't take the workspace; what was built is written all the same.
    """
    tracker = config.tracker
    domains = {name: list(domain.tasks) for name, domain in config.scale.domains.items()}
    workspace = build_workspace(tracker.entity or "", tracker.project, domains, read_choices(CONF))
    path = Path(config.outputs) / "dashboard" / "workspace.json"
    _continue_view(workspace, path)
    _write(workspace, path)
    if tracker.kind == "none" or mode_of(tracker) != "online":
        why = "tracker=none" if tracker.kind == "none" else "the tracker is offline"
        log.warning(
            "%s holds the workspace; not published, %s: set WANDB_API_KEY (or log in and give tracker.mode=online)",
            path, why,
        )  # fmt: skip
        return path
    log.info("%s is published at %s", path, _publish(workspace, tracker.project, path))
    return path


def build_workspace(entity: str, project: str, domains: dict[str, list[str]], choices: Choices) -> ws.Workspace:
    """The workspace, without a network.

    Args:
        entity: whose project it is; empty where that is not known yet.
        project: of the runs.
        domains: domain -> its accuracy columns.
        choices: the values that the run filters start from.
    """
    sections = [
        _section(f"{_TITLES[key]} by layer, without HARC (before/) and with", _by_layer(key, list(domains)))
        for key in _TITLES
    ]
    sections.append(_section("Convergence of conjugate gradients", _solver()))
    sections.append(_section("Accuracy by method", _accuracies(Layout(domains, [], {}).columns), columns=3))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(
                ws.Config("experiment_name").isin(list(choices.experiments)),
                ws.Config("scale_name").isin(list(choices.scales)),
                ws.Config("method_name").isin(list(choices.methods)),
            ),
            # Not grouped: W&B averages a group's lines, and runs of two scales are never averaged.
            order=[ws.Ordering(ws.Config(key), ascending=True) for key in _TABLE],
            pinned_columns=[*(f"config:{key}" for key in _TABLE), *(f"summary:{key}" for key in _NUMBERS)],
        ),
    )


def read_choices(conf: Path) -> Choices:
    """Every experiment of conf/ that makes runs, single cells among them, every scale, and every merge."""
    named = [OmegaConf.load(file) for file in sorted((conf / "experiment").glob("[!_]*.yaml"))]
    with_runs = [str(one.experiment.name) for one in named if OmegaConf.select(one, "experiment.report")]
    return Choices([*with_runs, ExperimentConfig().name], _options(conf / "scale"), sorted(merge_options()))


def _options(group: Path) -> list[str]:
    return sorted(file.stem for file in group.glob("[!_]*.yaml"))


def _section(name: str, panels: list[Any], columns: int = 2) -> ws.Section:
    return ws.Section(
        name=name, panels=panels, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=columns, rows=2)
    )


def _by_layer(key: str, domains: list[str]) -> list[wr.LinePlot]:
    """One panel for the mean of the domains, one a domain; an uncalibrated run has no `before/`."""
    return [
        wr.LinePlot(
            title=f"{_TITLES[key]}, {'mean of the domains' if domain == 'mean' else domain}",
            x="layer",
            y=[f"before/{MEASURES[key]}/{domain}", f"{MEASURES[key]}/{domain}"],
            title_x="layer",
            title_y=_AXES[key],
            max_runs_to_show=_RUNS,
        )
        for domain in ("mean", *domains)
    ]


def _solver() -> list[wr.LinePlot]:
    residuals = wr.LinePlot(
        title="Relative residual, every layer",
        x="cg_iteration",
        metric_regex=RESIDUALS,
        log_y=True,
        title_x="iteration",
        title_y="relative residual",
        max_runs_to_show=_RUNS,
    )
    of_layers = [
        wr.LinePlot(
            title=f"{_SOLVER[name]}, by layer (on the calibration text)",
            x="layer",
            y=[f"calibration/{name}"],
            title_x="layer",
            title_y=_SOLVER[name],
            max_runs_to_show=_RUNS,
        )
        for name in CALIBRATION
    ]
    return [residuals, *of_layers]


def _accuracies(columns: list[str]) -> list[wr.BarPlot]:
    """A bar a run, named by its method and scale: the overall mean first, then the domains', then benchmarks."""
    ordered = sorted(columns, key=lambda name: (name != "overall", not name.endswith("_avg")))
    return [
        wr.BarPlot(
            title=f"Accuracy, {name.removesuffix('_avg')}",
            metrics=[f"accuracy/{name}"],
            title_x="%",
            max_runs_to_show=_RUNS,
            max_bars_to_show=_RUNS,
        )
        for name in ordered
    ]


def _continue_view(workspace: ws.Workspace, path: Path) -> None:
    """Makes it the view that was published from this file before, so that publishing replaces it."""
    if not path.exists():
        return
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["project"] == workspace.project and workspace.entity in ("", earlier["entity"]):
        workspace.entity = earlier["entity"]
        workspace._internal_name, workspace._internal_id = earlier["name"], earlier["id"]


def _write(workspace: ws.Workspace, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(workspace._spec, indent=1) + "\n", encoding="utf-8")


def _publish(workspace: ws.Workspace, project: str, path: Path) -> str:
    try:
        if not workspace.entity:
            workspace.entity = wandb.Api().default_entity or ""
        workspace.save()
        _write(workspace, path)
        return workspace.url
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RuntimeError(
            f"{path} holds the workspace, but W&B did not take it for project {project}: {reason} "
            "(WANDB_API_KEY and tracker.entity say whose project it is; without that file a new view is made)"
        ) from error
