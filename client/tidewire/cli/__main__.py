"""``python -m tidewire.cli``."""

import sys

from tidewire.cli.app import main

sys.exit(main())
