"""The merging methods, a file each: its formula and source, its settings, one function.

averaging/      means of the sources' weights; no base, or the base as one more point
task_vectors/   entry by entry on what fine-tuning changed
subspace/       on singular values and subspaces of a layer's change
data_driven/    on what the sources compute from text
"""
