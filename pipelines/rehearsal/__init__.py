"""`rehearse=true`: an experiment of a real scale at its true width, with few layers and steps, on stand-ins.

The graph, the configuration, the loaders and the code are those of the real run. What stages took then is what the plan
of the real scale goes by (docs/scales.md).
"""
