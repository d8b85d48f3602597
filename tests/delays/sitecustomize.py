"""Makes threads and processes learn things late: Redis' answers, that a transaction is committed, what tests hear.

`scripts/test.sh --delays` has every Python load it. A test that looks before it may know, and code that takes for done
what was only begun, pass where threads are quick; here they fail. Not in a test's own thread, whose haste is the point.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SHARE = float(os.environ.get("DELAYS_SHARE", "0.1"))  # of all that could be late
SECONDS = float(os.environ.get("DELAYS_SECONDS", "0.05"))


def _be_late() -> None:
    in_a_test = "pytest" in sys.modules and threading.current_thread() is threading.main_thread()
    if not in_a_test and random.random() < SHARE:
        time.sleep(SECONDS)


def _late(owner: type, name: str, *, before: bool = False) -> None:
    """Have a method of a class return late, or begin late."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def delayed(*args: Any, **options: Any) -> Any:
        if before:
            _be_late()
        try:
            return method(*args, **options)
        finally:
            if not before:
                _be_late()

    setattr(owner, name, delayed)


DELAYS: dict[str, Callable[[Any], None]] = {
    "redis.connection": lambda module: _late(module.AbstractConnection, "read_response"),
    "sqlalchemy.engine.base": lambda module: _late(module.RootTransaction, "_do_commit"),
    "tests.servers.links": lambda module: _late(module.Heard, "__call__", before=True),
}


class _Finder(importlib.abc.MetaPathFinder):
    """Changes each of those modules when it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if name not in DELAYS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_delay(module: ModuleType) -> None:
                execute(module)
                DELAYS[name](module)

            spec.loader.exec_module = execute_and_delay  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
