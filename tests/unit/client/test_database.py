"""The typed calls for databases: what is asked for, and that it may be asked again."""

from tests.unit.client.network import answer, peer
from tests.unit.client.test_credits import StillClock

from tollkeeper.client.database import DatabaseClient
from tollkeeper.kernel.backoff import Backoff

AWAY = answer(503, {"type": "urn:tollkeeper:problem:keys-unavailable", "title": "away"})
NOTHING = {"pid": 7, "at": "2026-03-01T12:00:00Z"}


async def test_calls_are_repeated_while_nobody_can_answer() -> None:
    answers = [
        AWAY,
        answer(200, {**NOTHING, "databases": [], "of_a_newer_service": True}),
        answer(200, {**NOTHING, "threshold_s": None, "total": 0, "items": [], "statements": []}),
    ]
    backoff = Backoff(first_ms=1, ceiling_ms=1, retries=3)
    async with (
        peer(answers) as service,
        DatabaseClient(service.url, "key", clock=StillClock(), backoff=backoff) as client,
    ):
        found = await client.databases()
        slow = await client.slow_queries(limit=5)

    assert (7, ()) == (found.pid, found.databases)
    assert (None, ()) == (slow.threshold_s, slow.items)
    assert [
        b"GET /v1/database ",
        b"GET /v1/database ",
        b"GET /v1/database/slow-queries?limit=5 ",
    ] == [request[: request.index(b"HTTP")] for request in service.requests]
