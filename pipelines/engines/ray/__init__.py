"""engine=ray: the stages as tasks of a Ray cluster, each with its cores, GPUs and memory."""
