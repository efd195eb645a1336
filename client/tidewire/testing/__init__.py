"""
Conformance kit: what must hold on every wire, for anybody's transport. It needs no pytest.

::

    report = await tidewire.testing.check_transport("third://127.0.0.1:0")
    print(report.text())
    assert report.ok
"""

from tidewire.testing.behaviour import ABILITIES, Behaviour
from tidewire.testing.behaviours import BEHAVIOURS
from tidewire.testing.kit import check_transport, check_transport_blocking
from tidewire.testing.report import Outcome, Report, Result
from tidewire.testing.site import Served, ServerMaker

__all__ = [
    "ABILITIES",
    "BEHAVIOURS",
    "Behaviour",
    "Outcome",
    "Report",
    "Result",
    "Served",
    "ServerMaker",
    "check_transport",
    "check_transport_blocking",
]
