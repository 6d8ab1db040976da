"""Engines: what makes the tasks of a graph, in the processes of this machine or of many.

An engine is an option of the group `engine` (conf/engine), a dataclass of settings, and a class with the two methods of
`Engine` (pipelines/engines/engine.py). Whatever it starts, each task is one unit of work (pipelines/engines/unit.py),
made by the runner.
"""
