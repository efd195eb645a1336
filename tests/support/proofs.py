"""Which test shows the effect of which option of the configuration."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

TestT = TypeVar("TestT", bound=Callable[..., Any])


def proves(*options: str) -> Callable[[TestT], TestT]:
    """Note which options a test shows the effect of; read from the source by `proven_in`."""

    def mark(test: TestT) -> TestT:
        return test

    return mark


def proven_in(file: Path) -> Iterator[str]:
    """Yield the options that tests of a module say they prove."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "proves":
                yield from (ast.literal_eval(option) for option in mark.args)
