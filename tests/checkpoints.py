"""What tests of checkpoints share: a maker as the worker has it, and an audit in this process."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry
from tests.ledger import Ledger

from tollkeeper.credits.audit import AuditFindings, CheckpointAudit
from tollkeeper.credits.audit_messages import CheckpointPage, LeafPage
from tollkeeper.credits.auditor import Auditor
from tollkeeper.credits.checkpoint_metrics import CheckpointMetrics
from tollkeeper.credits.checkpoint_store import CheckpointStore
from tollkeeper.credits.checkpointer import SESSION_SETTINGS, Checkpointer
from tollkeeper.credits.note import SigningKey, make_key, notes_in
from tollkeeper.credits.publication import HttpTarget
from tollkeeper.database.connect import connector
from tollkeeper.database.pool import Pool
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import TenantId

KEY = make_key("example.com/credits", bytes(range(32)))


@asynccontextmanager
async def running_maker(
    dsn: str,
    *,
    key: SigningKey = KEY,
    file: Path | None = None,
    url: str | None = None,
    store: CheckpointStore | None = None,
    registry: CollectorRegistry | None = None,
) -> AsyncIterator[Checkpointer]:
    clock = SystemClock()
    pool = Pool(connector(dsn, settings=SESSION_SETTINGS), size=1, clock=clock)
    target = None if url is None else HttpTarget(url)
    try:
        yield Checkpointer(
            pool, store or CheckpointStore(), key=key, clock=clock,
            metrics=CheckpointMetrics(registry or CollectorRegistry()), file=file, target=target,
        )  # fmt: skip
    finally:
        await pool.close()
        if target is not None:
            await target.close()


class AskedInProcess:
    """The audit's questions, in pages of two: every page ends somewhere."""

    def __init__(self, ledger: Ledger, tenant_id: TenantId | None = None) -> None:
        self._auditor = Auditor(ledger.pool, CheckpointStore(), ledger.store)
        self._tenant_id = tenant_id

    async def checkpoints(self, *, after: int) -> CheckpointPage:
        return await self._auditor.checkpoints(after=after, limit=2)

    async def leaves(self, number: int, *, after: str | None = None) -> LeafPage:
        return await self._auditor.leaves(number, self._tenant_id, after=int(after or 0), limit=2)


def notes_of(path: Path) -> list[str]:
    return list(notes_in(path.read_text(encoding="utf-8").splitlines(keepends=True)))


async def audit(
    ledger: Ledger,
    notes: Iterable[str],
    *,
    keys: Iterable[SigningKey] = (KEY,),
    tenant_id: str | None = None,
) -> AuditFindings:
    """Audit a ledger as `verify --checkpoints` does."""
    asked = AskedInProcess(ledger, None if tenant_id is None else TenantId(tenant_id))
    judging = CheckpointAudit(asked, [key.verifying for key in keys])
    await judging.read(notes)
    if missing := await judging.missing():
        judging.ends_early(missing)
    return judging.finish()


def faults_of(found: AuditFindings) -> set[tuple[str, str | None, int]]:
    return {(fault.fault.value, fault.account_id, fault.sequence) for fault in found.faults}
