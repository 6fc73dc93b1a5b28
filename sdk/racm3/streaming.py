"""From threads to asyncio: an iterator that works in a thread, as an asynchronous one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


async def in_thread(items: Iterator[Item]) -> AsyncIterator[Item]:
    """The items of an iterator that may block, one thread call for each, so that the event loop goes on.

    When the consumer is cancelled or stops early, the step under way is waited for, and the iterator is closed.
    """
    end = object()
    step: asyncio.Future[object] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, items, end))
            item = await asyncio.shield(step)
            if item is end:
                return
            yield item  # type: ignore[misc]
    finally:
        if step is not None and not step.done():
            await asyncio.wait([step])
            if not step.cancelled():
                step.exception()  # seen: nobody waits for it any more
        close = getattr(items, "close", None)
        if close is not None:
            await asyncio.to_thread(close)
