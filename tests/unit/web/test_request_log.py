import io
import json
import logging
from collections.abc import Iterator, Mapping

import httpx
import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from tests.clocks import SetClock

from tollkeeper.kernel.ids import system_entropy
from tollkeeper.telemetry.cards import mask_cards
from tollkeeper.telemetry.logging import configure_logging
from tollkeeper.telemetry.request import IDS_LIMIT, current_request, current_request_id, ids_of
from tollkeeper.web.answer import JsonAnswer
from tollkeeper.web.leaving import Leaving
from tollkeeper.web.problem import URN
from tollkeeper.web.request_log import RequestLog, RequestTally, request_id_of

LINES_PER_S = 3
SLOW_S = 0.5
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Logged:
    """A layer under the request log, that answers as it is told, and what was written of it."""

    def __init__(self, application: ASGIApp | None = None, *, level: str = "info") -> None:
        self._stream = io.StringIO()
        configure_logging(level, "json", stream=self._stream)
        self.clock = SetClock()
        self.tally = RequestTally()
        self.takes_s = 0.0
        self.status = 200
        self.app = RequestLog(
            application or self._answer,
            clock=self.clock,
            entropy=system_entropy,
            tally=self.tally,
            slow_s=SLOW_S,
            lines_per_s=LINES_PER_S,
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.clock.advance(self.takes_s)
        scope["path_template"] = "/v1/accounts/{account_id}"
        await JsonAnswer(b"{}", self.status)(scope, receive, send)

    async def get(
        self, path: str = "/v1/accounts/ann", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)  # type: ignore[arg-type]  # other ASGI types
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    def lines(self) -> list[dict[str, object]]:
        return [
            line
            for line in map(json.loads, self._stream.getvalue().splitlines())
            if str(line["event"]).startswith(("web.", "engine."))
        ]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Id": "from-the-gateway:7"}, "from-the-gateway:7"),
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, TRACE),
        ({"X-Request-Id": "a", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, "a"),
        ({"X-Request-Id": "no good", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, TRACE),
    ],
)
async def test_callers_id_is_kept_and_answered(headers: dict[str, str], expected: str) -> None:
    logged = Logged()
    answer = await logged.get(headers=headers)

    assert expected == answer.headers["X-Request-Id"]
    assert [expected] == [line["request_id"] for line in logged.lines()]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Request-Id": ""},
        {"X-Request-Id": "a b"},
        {"X-Request-Id": "a" * 129},
        {"X-Request-Id": "4111-1111-1111-1111"},
        {"X-Request-Id": "tk_live_0123456789abcdef0123456789abcdef"},
        {"traceparent": f"00-{'0' * 32}-b7ad6b7169203331-01"},
        {"traceparent": TRACE},
    ],
)
async def test_what_is_no_sane_id_is_replaced_by_ours(headers: dict[str, str]) -> None:
    logged = Logged()
    first, second = [(await logged.get(headers=headers)).headers["X-Request-Id"] for _ in range(2)]

    assert first != second
    assert {first, second}.isdisjoint(headers.values())
    assert [first, second] == [line["request_id"] for line in logged.lines()]


@given(st.from_regex(rb"[A-Za-z0-9._:-]{1,130}", fullmatch=True))
@example(b"00000000-0000-4000-4111-111111111111")
def test_an_id_is_the_same_in_the_answer_and_in_the_log(value: bytes) -> None:
    found = request_id_of([(b"x-request-id", value)])

    assert found is None or found == value.decode() == mask_cards(found)


async def test_line_says_what_was_asked_and_how_it_ended() -> None:
    logged = Logged()
    logged.takes_s, logged.status = 0.0123, 402
    await logged.get(headers={"X-Request-Id": "one"})

    (line,) = logged.lines()
    line.pop("timestamp")
    assert {
        "event": "web.request", "level": "info", "logger": "tollkeeper.web.request_log",
        "request_id": "one", "method": "GET", "route": "/v1/accounts/{account_id}",
        "status": 402, "duration_ms": 12.3,
    } == line  # fmt: skip
    assert [0, 0, 0, 0, 1, 0] == logged.tally.by_class


async def test_load_is_counted_beyond_the_budget_of_each_second() -> None:
    logged = Logged()
    for _ in range(5):
        await logged.get()
    logged.clock.advance(1)
    await logged.get()

    events = [line["event"] for line in logged.lines()]
    assert ["web.request"] * LINES_PER_S + ["web.requests_not_logged", "web.request"] == events
    assert 2 == logged.lines()[LINES_PER_S]["requests"] == logged.tally.not_logged
    assert 6 == logged.tally.by_class[2]


async def test_what_failed_or_was_slow_is_written_whatever_the_load() -> None:
    logged = Logged(level="warning")
    for _ in range(2 * LINES_PER_S):
        await logged.get()
    logged.status = 503
    for _ in range(2 * LINES_PER_S):
        await logged.get()
    logged.status, logged.takes_s = 200, SLOW_S
    await logged.get("/health")

    lines = logged.lines()
    assert [503] * 2 * LINES_PER_S + [200] == [line["status"] for line in lines]
    assert {"warning"} == {line["level"] for line in lines}


async def test_probes_leave_no_line_unless_they_break() -> None:
    logged = Logged()
    for status in (200, 503, 500):
        logged.status = status
        await logged.get("/health/ready")

    assert [500] == [line["status"] for line in logged.lines()]


async def test_at_the_level_debug_everything_is_written() -> None:
    logged = Logged(level="debug")
    for _ in range(2 * LINES_PER_S):
        await logged.get("/health")

    assert 2 * LINES_PER_S == len(logged.lines())


async def test_a_request_without_an_answer_has_a_line() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    logged = Logged(broken)
    with pytest.raises(ZeroDivisionError):
        await logged.get()

    assert [(None, "warning")] == [(line["status"], line["level"]) for line in logged.lines()]
    assert 1 == logged.tally.by_class[0]
    assert current_request.get() is None


async def test_tenant_key_and_problem_are_in_every_line(application: ASGIApp) -> None:
    logged = Logged(application)
    good = {"Authorization": "Bearer good", "X-Request-Id": "one"}
    bug = await logged.get("/raise/bug", good)
    database = await logged.get("/raise/database", good)
    unknown = await logged.get("/nowhere", {**good, "Authorization": "Bearer bad"})

    asked, refused = logged.lines()[:3], logged.lines()[3:]
    assert [
        ("web.request_failed", 500), ("web.request", 500), ("web.request", 503),
    ] == [(line["event"], line.get("status", 500)) for line in asked]  # fmt: skip
    assert {("one", "acme", "00000000-0000-0000-0000-000000000001")} == {
        (line["request_id"], line["tenant_id"], line["key_id"]) for line in asked
    }
    assert f"{URN}database-unavailable" == asked[2]["problem"]
    assert "DatabaseUnavailable" in str(asked[2]["cause"])
    assert [(f"{URN}key-unknown", 401)] == [
        (line["problem"], line["status"]) for line in refused if line["event"] == "web.request"
    ]
    assert ["one"] * 3 == [a.json()["request_id"] for a in (bug, database, unknown)]


async def test_connections_are_closed_while_we_leave() -> None:
    leaving = False
    logged = Logged()
    logged.app = RequestLog(
        Leaving(logged.app, is_leaving=lambda: leaving),
        clock=logged.clock, entropy=system_entropy, tally=logged.tally,
        slow_s=SLOW_S, lines_per_s=LINES_PER_S,
    )  # fmt: skip
    before = await logged.get()
    leaving = True
    after = await logged.get()

    assert "Connection" not in before.headers
    assert "close" == after.headers["Connection"]


async def test_what_is_no_http_passes() -> None:
    seen: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(message: Message | None = None) -> None: ...

    logged = Logged(application)
    await logged.app({"type": "websocket"}, nothing, nothing)  # type: ignore[arg-type]  # no more of it is read

    assert ["websocket"] == seen
    assert [0] * 6 == logged.tally.by_class


def test_ids_of_many_requests_are_few_and_distinct() -> None:
    states = [{"request_id": f"{number // 2}"} for number in range(100)]

    assert tuple(f"{number}" for number in range(IDS_LIMIT)) == ids_of([None, *states])
    assert () == ids_of([None])
    assert current_request_id() is None
