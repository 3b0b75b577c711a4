"""``alnumpy index --scheduler``: the workers of a Dask scheduler. Nothing else in alnumpy imports Dask."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from ..errors import GalleryError, MissingExtraError
from .common import UsageError

WAIT = 10  # seconds to wait for the scheduler


class Workers(Executor):
    """A client as an executor. Its own executor waits for ever if the scheduler goes away while a result is fetched."""

    def __init__(self, client: Any):
        self.client = client

    def submit(self, function: Callable[..., Any], /, *values: Any, **named: Any) -> Any:
        """Dask's own future, which fetches its result only when it is asked for it."""
        return self.client.submit(function, *values, **named, pure=False)  # a file may have changed since the same task


@contextmanager
def workers(address: str) -> Iterator[Executor]:
    """An executor that gives its tasks to the workers of a scheduler.

    Raises MissingExtraError without Dask, UsageError for an impossible address, and GalleryError if no scheduler
    answers there or if it has no workers.
    """
    try:
        from distributed import Client, Security
        from distributed.comm import connect
    except ImportError:
        raise MissingExtraError("--scheduler needs Dask: pip install 'alnumpy[dask]'") from None

    async def knock() -> None:
        connecting = connect(address, timeout=WAIT, **Security().get_connection_args("client"))
        comm = await asyncio.wait_for(connecting, WAIT + 1)  # a silent server would be waited for without end
        await comm.close()

    logging.disable()  # what goes wrong is told in one line, by what it ends
    try:
        asyncio.run(knock())  # a Client that cannot connect would need another 20 s to end
        client = Client(address, timeout=WAIT, set_as_default=False)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{address}: not the address of a scheduler, such as tcp://HOST:8786 ({error})") from None
    except Exception as error:  # another kind of server makes Dask raise MemoryError, struct.error and more
        what = f" ({error})" if isinstance(error, OSError) and str(error) else ""
        raise GalleryError(f"{address}: no scheduler answers there{what}; start one with: dask scheduler") from None
    with client:
        if not client.nthreads():
            raise GalleryError(f"{address}: the scheduler has no workers; start some with: dask worker {address}")
        yield Workers(client)
