"""
Whether an object that was handed out is still in somebody's hands.

Making a message takes longer than most handlers, and most handlers keep none: 180 ns against 75
for a message that is handed out again, measured with a handler that counts.
"""

import sys
from typing import Final


def _always_more(_thing: object) -> int:
    """Count as if everybody kept everything."""
    global _calls  # noqa: PLW0603 (no two counts are the same: nothing is ever handed out again)
    _calls += 1
    return _calls


_calls = 0

# From 3.14 on a function's own variables may be borrowed, and a count can be one less than another
# of the same object; other interpreters count nothing.
count_references: Final = (
    sys.getrefcount
    if sys.implementation.name == "cpython" and sys.version_info < (3, 14)
    else _always_more
)
"""
How many hold an object. What a function counts before it hands an object out, and counts again
after, is in nobody else's hands.
"""
