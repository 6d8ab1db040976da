"""Which task is next, on one machine: of those that can be made, the one with the longest path of work behind it.

The engine and the plan decide by the same rule: the plan's wall time is what the rule would take.
"""

import heapq
from collections.abc import Mapping

from pipelines.graph.graph import Graph, Task
from pipelines.runner.resources import Resources


class Schedule:
    """The missing tasks of a graph, handed out one by one as they fit.

    Attributes: running (key -> what the task takes of the machine); left (keys of tasks not yet handed out).
    """

    def __init__(self, graph: Graph, machine: Resources, seconds: Mapping[str, float] | None = None):
        """Args:
        graph: the tasks.
        machine: what they share.
        seconds: key -> wall time, where that is not the task's own estimate.
        """
        self.machine = machine
        self.running: dict[str, Resources] = {}
        self._nodes: dict[str, list[int]] = {}
        self.left = {task.key: task for task in graph.missing}
        self._waits = {key: {need for need in task.needs if need in self.left} for key, task in self.left.items()}
        paths = remaining_paths(graph, seconds or {})
        self._order = sorted(self.left, key=lambda key: (self.left[key].resources.exclusive, -paths[key]))

    @property
    def finished(self) -> bool:
        """Whether nothing runs and nothing is left."""
        return not self.running and not self.left

    def start_next(self) -> Task | None:
        """The next task, counted as running from now on; None while none can start.

        The first in the order is waited for when it does not fit, so that wide tasks are not held up by narrow ones.
        Tasks that measure come last, and have all cores of a machine.
        """
        first = next((key for key in self._order if key in self.left and not self._waits[key]), None)
        if first is None:
            return None
        if self.running and len(self._fitting(first)) < self.left[first].resources.on(self.machine).nodes:
            return None
        return self.start(first)

    def start(self, key: str) -> Task:
        """Counts a task as running from now on, on the first nodes that it fits on, else on the first."""
        takes = self.left[key].resources.on(self.machine)
        self._nodes[key] = [*self._fitting(key), *range(takes.nodes)][: takes.nodes]
        self.running[key] = takes
        return self.left.pop(key)

    def end(self, key: str) -> None:
        """The task was made."""
        del self.running[key]
        for waits in self._waits.values():
            waits.discard(key)

    def fail(self, key: str, graph: Graph) -> list[Task]:
        """The task was not made: it and those behind it are given up; returns the latter."""
        self.running.pop(key, None)
        self.left.pop(key, None)
        behind = graph.behind([key])
        return [self.left.pop(task.key) for task in graph.missing if task.key in behind and task.key in self.left]

    def _fitting(self, key: str) -> list[int]:
        """The numbers of the nodes that have what a task takes of each."""
        takes = self.left[key].resources.on(self.machine)
        return [
            node
            for node in range(self.machine.nodes)
            if sum(one.cores for one in self._on(node)) + takes.cores <= self.machine.cores
            and sum(one.gpus for one in self._on(node)) + takes.gpus <= self.machine.gpus
            and sum(one.memory_gb for one in self._on(node)) + takes.memory_gb <= self.machine.memory_gb
        ]

    def _on(self, node: int) -> list[Resources]:
        return [takes for key, takes in self.running.items() if node in self._nodes[key]]


def remaining_paths(graph: Graph, seconds: Mapping[str, float]) -> dict[str, float]:
    """Of each missing task, the seconds of the longest chain that begins with it."""
    missing = graph.missing
    paths = {task.key: 0.0 for task in missing}
    for task in reversed(missing):
        paths[task.key] += seconds.get(task.key, task.seconds.value)
        for need in task.needs:
            if need in paths:
                paths[need] = max(paths[need], paths[task.key])
    return paths


def simulate(
    graph: Graph,
    machine: Resources,
    seconds: Mapping[str, float] | None = None,
    running: Mapping[str, float] | None = None,
) -> float:
    """Wall time, in seconds, that the missing tasks take on a machine; arguments are those of `spans`."""
    return max((end for _, end in spans(graph, machine, seconds, running).values()), default=0.0)


def spans(
    graph: Graph,
    machine: Resources,
    seconds: Mapping[str, float] | None = None,
    running: Mapping[str, float] | None = None,
) -> dict[str, tuple[float, float]]:
    """When each missing task would start and end on a machine, in seconds from now.

    Args:
        graph: the tasks.
        machine: what they share.
        seconds: key -> wall time, where that is not the task's own estimate (0: it is made, and left out).
        running: key -> seconds left, of tasks that run already.
    """
    known = {task.key: task.seconds.value for task in graph.missing} | dict(seconds or {})
    schedule = Schedule(graph, machine, known)
    ends: list[tuple[float, str]] = []
    found: dict[str, tuple[float, float]] = {}
    for key, left in (running or {}).items():
        schedule.start(key)
        heapq.heappush(ends, (left, key))
        found[key] = (0.0, left)
    for key in [key for key in schedule.left if known[key] == 0]:
        schedule.start(key)
        schedule.end(key)
    now = 0.0
    while not schedule.finished:
        while task := schedule.start_next():
            heapq.heappush(ends, (now + known[task.key], task.key))
            found[task.key] = (now, now + known[task.key])
        now, key = heapq.heappop(ends)
        schedule.end(key)
    return found


def peak_disk_gb(graph: Graph, machine: Resources) -> float:
    """The most that missing tasks have on disk at once: what was left up to then, and what is at work."""
    changes = []
    for key, (start, end) in spans(graph, machine).items():
        task = graph.tasks[key]
        changes += [(start, 1, task.disk_gb + task.scratch_gb), (end, 0, -task.scratch_gb)]
    most = held = 0.0
    for _, _, change in sorted(changes):
        held += change
        most = max(most, held)
    return most
