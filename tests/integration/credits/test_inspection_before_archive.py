"""A backup may be of a schema from before the archive: it is inspected all the same."""

from tests.ledger import Ledger

from tollkeeper.credits.inspection import LedgerInspector
from tollkeeper.database.connect import connector
from tollkeeper.database.driver import Connection
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.migrate.service import shipped_migrations


async def take_back(owner: Connection, name: str) -> None:
    """Take back what a migration made."""
    [down] = [each.down for each in shipped_migrations("credits") if each.name == name]
    assert down is not None
    for statement in down:
        await owner.execute(statement.text)


async def test_a_ledger_from_before_the_archive_is_inspected(
    full: Ledger, owner: Connection, forger: Connection, credits_dsn: str
) -> None:
    inspector, connect = LedgerInspector(SystemClock()), connector(credits_dsn)
    facts = await inspector.facts(owner)
    await take_back(owner, "schema_life")
    before = await inspector.facts(owner)
    sound = await inspector.faults(connect)
    await forger.execute("UPDATE credit_transactions SET amount = 9 WHERE account_id = 'bob'")
    faults = await inspector.faults(connect)

    assert facts == before
    assert [] == list(sound)
    assert [] != list(faults)
    assert 0 == (await inspector.loss(owner, forger)).count
