"""The one entry: `python run.py +experiment=table1` runs a table, `python run.py --help` says what else there is."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
