"""Generated from tests/support/echo/v1 by proto/generate.py: never edit."""
