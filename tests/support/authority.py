"""Certificates of tests: an authority and what it signs, good and bad."""

from tidewire.testing.authority import Authority, Issued

__all__ = ["Authority", "Issued"]
