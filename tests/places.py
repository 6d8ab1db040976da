"""Where tests find the checkout, and published data that may lie beside it."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
BENCHMARKS = Path(os.environ.get("HARC_BENCHMARKS", SHARED / "benchmarks"))
