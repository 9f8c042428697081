"""What keeps the ledger's schema, built from settings: a part of the composition root."""

import random  # noqa: TID251  # the composition root is where randomness comes from

from prometheus_client import CollectorRegistry

from tollkeeper.config import Settings
from tollkeeper.credits.archive_store import SESSION_SETTINGS as ARCHIVE_SETTINGS
from tollkeeper.credits.archive_store import TIMEOUTS as ARCHIVE_TIMEOUTS
from tollkeeper.credits.archive_store import ArchiveStore
from tollkeeper.credits.archivist import Archivist
from tollkeeper.credits.keyfile import read_signing_key
from tollkeeper.credits.life_metrics import ArchiveMetrics, SummaryMetrics
from tollkeeper.credits.summarizer import Summarizer
from tollkeeper.credits.summary_store import SummaryStore
from tollkeeper.database.database import Database
from tollkeeper.database.limits import PoolLimits
from tollkeeper.database.pool import Pool
from tollkeeper.database.status import Access
from tollkeeper.kernel.clock import SystemClock


def ledger_summarizer(settings: Settings, registry: CollectorRegistry, pool: Pool) -> Summarizer:
    """Make what keeps the summary of balances, with connections of the owner."""
    return Summarizer(
        pool, SummaryStore(), metrics=SummaryMetrics(registry), period_s=settings.summary_period_s
    )


def ledger_archivist(
    settings: Settings, registry: CollectorRegistry, database: Database
) -> Archivist:
    """Make what archives old partitions, as the owner.

    Raises:
        ConfigurationError: the key to sign with cannot be read.
    """
    pool = database.pool(
        "archive",
        access=Access.WRITE,
        size=1,
        settings=ARCHIVE_SETTINGS,
        command_timeout_s=ARCHIVE_TIMEOUTS.command_s,
        limits=PoolLimits(
            acquire_timeout_s=settings.acquire_timeout_s,
            max_waiting=settings.pool_waiting,
            report_held_s=ARCHIVE_TIMEOUTS.statement_s,
        ),
    )
    path = settings.checkpoint_key
    return Archivist(
        pool,
        ArchiveStore(),
        key=None if path is None else read_signing_key(path),
        clock=SystemClock(),
        jitter=random.Random().random,  # noqa: S311  # jitter keeps no secret
        metrics=ArchiveMetrics(registry),
        after_quarters=settings.archive_after_quarters,
    )
