"""`python -m billing`, which is `billing`."""

import sys

from billing.service.beginning import prepare


def main() -> None:
    """Runs the command line of this process."""
    prepare(sys.argv)
    from billing.cli.main import main as run  # only now: what it imports takes a while, and may open files

    run()


if __name__ == "__main__":
    main()
