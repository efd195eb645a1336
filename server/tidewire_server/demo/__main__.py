"""``python -m tidewire_server.demo``: see `--help`."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the demo; Ctrl-C ends it quietly at any moment, also while modules are imported."""
    try:
        from tidewire_server.demo.command import demo

        demo()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
