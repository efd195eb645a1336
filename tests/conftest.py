"""What every suite has."""

pytest_plugins = ["support.needs"]
