"""What every suite has."""

import signal

pytest_plugins = ["support.needs"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background has them ignore it, and what they start as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
