"""Control: commands to nodes."""

from tidewire_server.services.control.admin import AdminActions
from tidewire_server.services.control.service import ControlService

__all__ = ("AdminActions", "ControlService")
