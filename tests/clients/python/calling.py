"""One interface to the synchronous and the asyncio client, so that a test can run on both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from mnist_client import AsyncClient, Client


class Calling:
    """Calls one method per client; iterators are read to their ends."""

    def __init__(self, asynchronous: bool) -> None:
        self._asynchronous = asynchronous

    def __call__(self, address: str, method: str, *arguments: Any, **options: Any) -> Any:
        keywords = options.pop("of_call", {})
        if self._asynchronous:
            return asyncio.run(self._call_async(address, method, arguments, options, keywords))
        with Client(address, **options) as client:
            result = getattr(client, method)(*arguments, **keywords)
            return list(result) if method.endswith("_many") else result

    async def _call_async(
        self, address: str, method: str, arguments: Iterable[Any], options: Any, keywords: Any
    ) -> Any:
        async with AsyncClient(address, **options) as client:
            result = getattr(client, method)(*arguments, **keywords)
            return [each async for each in result] if method.endswith("_many") else await result
