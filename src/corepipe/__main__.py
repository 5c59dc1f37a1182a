"""Entry of the command line: `corepipe`, and `python -m corepipe`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is being imported ends it quietly, with the exit code that it has later."""
    try:
        from corepipe.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
