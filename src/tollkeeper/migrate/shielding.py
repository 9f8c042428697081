"""Cleanups that are done to their end, whoever loses patience meanwhile."""

import asyncio
from collections.abc import Coroutine


async def shielded(work: Coroutine[object, object, None]) -> None:
    """Do a cleanup to its end, even when we are told to leave meanwhile; leave after it."""
    task, cancelled = asyncio.create_task(work), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001  # raised below, by the task itself
            break
    task.result()
    if cancelled is not None:
        raise cancelled
