"""Sets of sequences as sorted ranges that do not touch."""

from bisect import bisect_left
from collections.abc import Iterable

Range = tuple[int, int]


def add(ranges: list[Range], first: int, last: int) -> None:
    """Add a range in place, merging what touches."""
    if not ranges or first > ranges[-1][1] + 1:
        ranges.append((first, last))
        return
    start = bisect_left(ranges, first - 1, key=lambda item: item[1])
    end = start
    while end < len(ranges) and ranges[end][0] <= last + 1:
        first = min(first, ranges[end][0])
        last = max(last, ranges[end][1])
        end += 1
    ranges[start:end] = [(first, last)]


def raise_floor(floor: int, ranges: list[Range]) -> int:
    """Move a floor over the ranges that reach it, dropping them, and return it."""
    done = 0
    for first, last in ranges:
        if first > floor + 1:
            break
        floor = max(floor, last)
        done += 1
    del ranges[:done]
    return floor


def of_indexes(indexes: Iterable[int]) -> list[Range]:
    """Ranges of increasing indexes."""
    found: list[Range] = []
    for index in indexes:
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found
