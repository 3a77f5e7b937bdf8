"""``python -m livemove``: the same as the console command."""

from livemove.cli.main import run

if __name__ == "__main__":
    run()
