"""Leaves that the maker of checkpoints did not write are never signed, whoever planted them."""

import pytest
from prometheus_client import CollectorRegistry
from tests.checkpoints import audit, running_maker
from tests.ledger import Ledger, consume

from tollkeeper.credits.errors import LeavesUnexplained
from tollkeeper.database.driver import Connection

REMOVAL = """
DELETE FROM checkpoint_leaves
WHERE checkpoint > (SELECT coalesce(max(number), 0) FROM checkpoints)
"""
"""What the guide says to do about leaves that no checkpoint explains."""

PLANTED = """
INSERT INTO checkpoint_leaves (
    sequence, checkpoint, position, balance, reserved, shard, account_id, tenant_id, head_hash
)
SELECT 1, $1, 0, 1000, 0, shard, account_id, tenant_id, sha256('invented')
FROM accounts WHERE account_id = 'ann'
"""


async def notes_in(owner: Connection) -> list[str]:
    rows = await owner.fetch("SELECT note FROM checkpoints ORDER BY number")
    return [row["note"] for row in rows]


@pytest.mark.parametrize("case", [(1, False), (1, True), (5, False), (5, True)])
async def test_leaves_that_were_planted_are_never_signed(
    ledger: Ledger, owner: Connection, credits_dsn: str, case: tuple[int, bool]
) -> None:
    """For the next checkpoint or a later one, of an account that stands still or moves."""
    (ahead, has_moved), registry = case, CollectorRegistry()
    await ledger.open_with(10, "ann", "bob")
    async with running_maker(credits_dsn, registry=registry) as maker:
        await maker.make()
        await owner.execute(PLANTED, 1 + ahead)
        if has_moved:
            await ledger.execute(consume("ann", 1))
        with pytest.raises(LeavesUnexplained) as refused:
            await maker.round()
        signed = await notes_in(owner)
        await owner.execute("SET session_replication_role = replica")
        await owner.execute(REMOVAL)
        await ledger.execute(consume("bob", 1))
        after = await maker.make()

    assert (2, 1) == (refused.value.number, refused.value.leaves)
    assert 1 == len(signed)
    assert 1 == registry.get_sample_value("credits_checkpoints_total", {"result": "failed"})
    assert after is not None
    assert 1 + has_moved == after.leaves
    assert () == (await audit(ledger, await notes_in(owner))).faults


async def test_a_number_is_not_signed_twice_when_its_checkpoint_was_taken_away(
    ledger: Ledger, owner: Connection, credits_dsn: str
) -> None:
    await ledger.open_with(10, "ann", "bob")
    async with running_maker(credits_dsn) as maker:
        await maker.make()
        await owner.execute("SET session_replication_role = replica")
        await owner.execute("DELETE FROM checkpoints")
        await ledger.execute(consume("ann", 1))
        with pytest.raises(LeavesUnexplained, match="checkpoint 1 is not signed: 2 leaves"):
            await maker.make()

    assert [] == await notes_in(owner)


async def test_leaves_that_a_trigger_adds_are_never_signed(
    ledger: Ledger, owner: Connection, credits_dsn: str
) -> None:
    """Written inside the maker's own statement, where no look before it finds them."""
    await ledger.open_with(10, "ann")
    await owner.execute(
        "CREATE FUNCTION plant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF pg_trigger_depth() = 1 THEN INSERT INTO checkpoint_leaves SELECT"
        " 7, checkpoint, position + 1, 0, 0, shard, 'dan', tenant_id, head_hash"
        " FROM checkpoint_leaves; END IF; RETURN NULL; END $$"
    )
    await owner.execute(
        "CREATE TRIGGER plant AFTER INSERT ON checkpoint_leaves EXECUTE FUNCTION plant()"
    )
    async with running_maker(credits_dsn) as maker:
        with pytest.raises(LeavesUnexplained):
            await maker.make()

    assert [] == await notes_in(owner)
