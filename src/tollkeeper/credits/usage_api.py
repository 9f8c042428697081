"""Usage over HTTP: of an account and of a tenant, a page at a time or as a file.

Which error is which problem stands with the ledger's (`api.py`).
"""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.types import ASGIApp

from tollkeeper.credits import errors, requests
from tollkeeper.credits.api import AnyRequest, answer, page_limit
from tollkeeper.credits.route_facts import ACCOUNT_ID, LIMIT
from tollkeeper.credits.usage import (
    START,
    Bucket,
    By,
    Question,
    Usage,
    by_of,
    cursor_of,
    range_of,
    zone_of,
)
from tollkeeper.credits.usage_messages import (
    JSON_TAIL,
    UsageView,
    csv_head,
    csv_line,
    json_head,
    json_item,
    usage_view,
)
from tollkeeper.credits.usage_reader import UsageReader
from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import AccountId, TenantId
from tollkeeper.kernel.principal import Scope
from tollkeeper.web.auth import authorize
from tollkeeper.web.openapi import Answer, RouteFacts, documented
from tollkeeper.web.problem import ProblemTable
from tollkeeper.web.query import query_of
from tollkeeper.web.stream import StreamedAnswer

MEDIA_TYPES: Final[Mapping[str, str]] = {
    "csv": "text/csv; charset=utf-8; header=present",
    "json": "application/json",
    "jsonl": "application/jsonl",
}
"""The formats of an export."""

CHUNK_BYTES: Final = 16_384

_NO_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]")
_UTC = "UTC"


class UsageApi:
    """The routes of usage around its reader."""

    def __init__(self, reader: UsageReader, *, clock: Clock, problems: ProblemTable) -> None:
        self._reader = reader
        self._clock = clock
        self._problems = problems
        self._zones = frozenset(available_timezones())

    def routes(self) -> list[HTTPRouteHandler]:
        """Return the route handlers."""

        def route(path: str, facts: RouteFacts) -> get:
            return get(path, operation_class=documented(facts, self._problems))

        return [
            route("/v1/accounts/{account_id:str}/usage", _OF_ACCOUNT)(self.read_usage),
            route("/v1/tenants/{tenant_id:str}/usage", _OF_TENANT)(self.read_tenant_usage),
        ]

    async def read_usage(self, request: AnyRequest) -> ASGIApp:
        """Read what an account consumed and purchased in a range, and when or for what.

        Exact at any time: what the worker has not rolled up yet is counted from the transactions.
        """
        account_id = requests.account_id_of(request.scope["path_params"]["account_id"])
        return await self._usage(request, account_id=account_id)

    async def read_tenant_usage(self, request: AnyRequest) -> ASGIApp:
        """Read what all accounts of a tenant consumed and purchased, as for one account."""
        tenant_id = requests.tenant_id_of(request.scope["path_params"]["tenant_id"])
        return await self._usage(request, tenant_id=tenant_id)

    async def _usage(
        self,
        request: AnyRequest,
        *,
        account_id: AccountId | None = None,
        tenant_id: TenantId | None = None,
    ) -> ASGIApp:
        principal = authorize(request.scope, Scope.CREDITS_READ)
        query = query_of(request.scope, *(parameter.name for parameter in _PARAMETERS))
        question = self._question(query, account_id, tenant_id)
        kind = query.get("format")
        if kind is not None:
            return self._export(question, principal.tenant_id, kind, query)
        limit = page_limit(query)
        after = cursor_of(query["after"], question.by) if "after" in query else START
        asked, total, found = await self._reader.page(
            question, principal.tenant_id, after=after, limit=limit
        )
        has_more = len(found) > limit
        return answer(usage_view(asked, total, found[:limit], has_more=has_more), 200)

    def _question(
        self, query: Mapping[str, str], account_id: AccountId | None, tenant_id: TenantId | None
    ) -> Question:
        by = by_of(query.get("by", By.DAY))
        name = query.get("time_zone", _UTC)
        zone = zone_of(name, self._zone)
        start, end = range_of(
            query.get("from"), query.get("to"), by=by, zone=zone, now=self._clock.now()
        )
        question = Question(
            account_id=account_id, tenant_id=tenant_id, start=start, end=end, by=by,
            zone_name=name, zone=zone,
        )  # fmt: skip
        question.bounds()  # too many are refused before anything is asked
        return question

    def _zone(self, name: str) -> tzinfo | None:
        if name == _UTC:
            return UTC
        return ZoneInfo(name) if name in self._zones else None

    def _export(
        self,
        question: Question,
        tenant_id: TenantId | None,
        kind: str,
        query: Mapping[str, str],
    ) -> StreamedAnswer:
        if kind not in MEDIA_TYPES:
            raise requests.invalid("format", "must be csv, json or jsonl")
        for name in ("after", "limit"):
            if name in query:
                raise requests.invalid(name, "is for pages: a file has all of it")
        whose = _NO_FILE_NAME.sub("_", question.account_id or question.tenant_id or "")
        days = "-".join(
            moment.astimezone(question.zone).strftime("%Y%m%d")
            for moment in (question.start, question.end)
        )
        file = f"usage-{whose}-{question.by}-{days}.{kind}"
        return StreamedAnswer(
            _in_chunks(self._lines(question, tenant_id, kind)),
            (
                (b"content-type", MEDIA_TYPES[kind].encode()),
                (b"content-disposition", f'attachment; filename="{file}"'.encode()),
                (b"cache-control", b"no-store"),
            ),
        )

    async def _lines(
        self, question: Question, tenant_id: TenantId | None, kind: str
    ) -> AsyncGenerator[bytes, None]:
        separator = b""
        async with aclosing(self._reader.export(question, tenant_id)) as export:
            async for each in export:
                match each:
                    case Question():
                        question = each  # which now has its tenant
                        if kind == "csv":
                            yield csv_head(question)
                    case Usage():
                        if kind == "json":
                            yield json_head(question, each)
                    case Bucket() if kind == "csv":
                        yield csv_line(each, question)
                    case Bucket() if kind == "jsonl":
                        yield json_item(each, question) + b"\n"
                    case Bucket():
                        yield separator + json_item(each, question)
                        separator = b","
        if kind == "json":
            yield JSON_TAIL


async def _in_chunks(lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield lines together, so that each does not cost a write."""
    chunk = bytearray()
    async with aclosing(lines):  # or a connection would be held until somebody collects it
        async for line in lines:
            chunk += line
            if len(chunk) >= CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
    yield bytes(chunk)


def _parameter(
    name: str, description: str, schema: Schema, example: str | int | None = None
) -> Parameter:
    return Parameter(
        name=name, param_in="query", required=False, description=description, schema=schema,
        example=example,
    )  # fmt: skip


_TEXT = Schema(type=OpenAPIType.STRING)
_PARAMETERS = (
    _parameter(
        "from",
        "beginning of the range: a date, or an RFC 3339 moment at a quarter of an hour; left out: "
        "2 days before its end by the hour, 12 months by month, else 30 days",
        _TEXT,
    ),
    _parameter(
        "to",
        "end of the range, not part of it, in the same form; left out: the end of this quarter of "
        "an hour",
        _TEXT,
    ),
    _parameter(
        "by",
        "what it is broken down by",
        Schema(type=OpenAPIType.STRING, enum=[*By], default=By.DAY),
        "day",
    ),
    _parameter(
        "time_zone",
        "IANA name of the time zone that days and months, and dates without a time, are of",
        Schema(type=OpenAPIType.STRING, default=_UTC),
        "Europe/Berlin",
    ),
    _parameter("after", "`next` of the page before; left out: from the start", _TEXT),
    LIMIT,
    _parameter(
        "format",
        "answer with all of it as a file: one JSON document, a JSON object a line, or CSV",
        Schema(type=OpenAPIType.STRING, enum=[*MEDIA_TYPES]),
    ),
)
_TENANT_ID = Parameter(
    name="tenant_id",
    param_in="path",
    required=True,
    description=requests.ID_RULE,
    schema=Schema(type=OpenAPIType.STRING, pattern=requests.ID_PATTERN),
    example="acme",
)
_ANSWER = Answer(
    description="a page, or with `format` a file of the whole",
    view=UsageView,
    files=("text/csv", MEDIA_TYPES["jsonl"]),
    headers={"Content-Disposition": {"description": "a file's name", "schema": {"type": "string"}}},
)
_OF_ACCOUNT = RouteFacts(
    summary="Read an account's usage",
    tag="usage",
    scope=Scope.CREDITS_READ,
    parameters=(ACCOUNT_ID, *_PARAMETERS),
    answers={200: _ANSWER},
    problems=(errors.InvalidRequest, errors.AccountNotFound, errors.ExportsRunning),
)
_OF_TENANT = RouteFacts(
    summary="Read a tenant's usage",
    tag="usage",
    scope=Scope.CREDITS_READ,
    parameters=(_TENANT_ID, *_PARAMETERS),
    answers={200: _ANSWER},
    problems=(errors.InvalidRequest, errors.TenantNotFound, errors.ExportsRunning),
)
