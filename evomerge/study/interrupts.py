"""Ctrl-C between two steps and never in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """An interrupt that comes in here is heard when the block has ended.

    Optuna's lock on its file does not survive one: a KeyboardInterrupt inside becomes a RuntimeError about a lock not held.
    Only the main thread hears interrupts; in any other this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *interrupt: came.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(*came[-1])
