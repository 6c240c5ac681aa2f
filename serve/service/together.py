"""Several awaitables at once: all their results, or the first error with nothing left running."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in their order. One is awaited as it is, without a task.

    Raises:
        What the first that fails raises, as it is; the others are cancelled and have ended by then.
    """
    if len(work) <= 1:
        return [await each for each in work]
    tasks = [asyncio.get_running_loop().create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
