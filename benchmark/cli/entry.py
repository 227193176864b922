"""Where the command `bench` begins: so small that Ctrl-C finds nothing before it."""

import sys


def main() -> None:
    """Run the command; Ctrl-C while it is being loaded is one line and status 130, as it is later."""
    try:
        from invbench.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    command()
