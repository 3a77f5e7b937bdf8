"""``python -m livemove``: the same as the console command."""

import sys

from livemove.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
