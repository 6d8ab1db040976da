"""engine=slurm: each stage a job of SLURM with its own resources, after the jobs that it needs."""
