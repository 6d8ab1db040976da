"""Graphs of a few named tasks, for tests that make nothing."""

from collections.abc import Mapping, Sequence

from pipelines.graph.graph import Graph, Seconds, Task
from pipelines.runner.resources import Resources
from pipelines.runner.stage import Node
from tests.pipelines.runner.stages_at_work import TraceConfig, node

ONE_CORE = Resources(cores=1)
TWO_CORES = Resources(cores=2, memory_gb=10)


def graph_of(
    tasks: Mapping[str, tuple[float, Sequence[str]]],
    resources: Mapping[str, Resources] | None = None,
    there: Sequence[str] = (),
) -> tuple[Graph, dict[str, str]]:
    """A graph, and name -> key. tasks: name -> its seconds and the names that it needs, those before it."""
    nodes: dict[str, Node] = {}
    made = {}
    for name, (seconds, needs) in tasks.items():
        nodes[name] = node(TraceConfig(text=name), name, **{need: nodes[need] for need in needs})
        takes = (resources or {}).get(name, ONE_CORE)
        task = Task(nodes[name], (0,), takes, Seconds(seconds, "estimated"), 1.0, there=name in there)
        made[task.key] = task
    return Graph([], made), {name: one.key for name, one in nodes.items()}
