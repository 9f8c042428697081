"""For tests that change a stored ledger: other values for its columns, and what is found."""

from tests.ledger import Ledger

from tollkeeper.credits.model import Fault, Verification
from tollkeeper.database.driver import Connection

# By type of column: another value than the one that stands there.
OTHER_VALUES = {
    "bigint": "coalesce({column}, 0) + 100",
    "smallint": "({column} + 1) % 256",
    "text": "coalesce({column}, '') || 'x'",
    "bytea": "set_byte({column}, 7, get_byte({column}, 7) # 1)",
    "uuid": "coalesce(overlay({column}::text placing '0000' from 20)::uuid, gen_random_uuid())",
    "json": "json_build_array({column})",
    "timestamp with time zone": "coalesce({column}, created_at) + interval '1 microsecond'",
}


async def verify_all(ledger: Ledger) -> list[Verification]:
    found = [await ledger.service.verify(None, None, after=None)]
    while found[-1].next is not None:
        found.append(await ledger.service.verify(None, None, after=found[-1].next))
    return found


async def faults_of(ledger: Ledger) -> list[Fault]:
    return [fault for each in await verify_all(ledger) for fault in each.faults]


async def columns_of(forger: Connection, table: str) -> list[tuple[str, str]]:
    return [
        (row["column_name"], row["data_type"])
        for row in await forger.fetch(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_name = $1 ORDER BY ordinal_position",
            table,
        )
    ]
