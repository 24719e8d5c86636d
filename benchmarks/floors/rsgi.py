"""The RSGI floor: a bare callable on Granian."""

from __future__ import annotations

from granian.rsgi import HTTPProtocol, Scope

from benchmarks.floors.session import Model

model = Model()


class App:
    """Granian recognises RSGI by the attribute `__rsgi__`."""

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answer every request with a prediction."""
        body = await protocol()
        answer = model.answer(body, scope.headers.get("content-type") or "")
        protocol.response_bytes(200, [("content-type", "application/json")], answer)


app = App()
