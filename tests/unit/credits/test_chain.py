"""The chain's bytes, written out: whoever verifies without our code needs exactly this."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import msgspec
import pytest

from tollkeeper.credits.chain import (
    AccountVerifier,
    fields_of,
    genesis,
    link_of,
    microseconds_since_epoch,
    unlinked,
)
from tollkeeper.credits.model import Account, FaultKind, Kind, Transaction
from tollkeeper.kernel.ids import AccountId, TenantId, TransactionId

ANN, ACME = AccountId("ann"), TenantId("acme")
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ROW = Transaction(
    transaction_id=TransactionId(UUID("01a20bde-8028-76e8-8fa8-1bc6b37ddf49")),
    account_id=ANN, shard=73, kind=Kind.TOPUP, amount=500, balance=500, reserved=0, sequence=1,
    fingerprint=bytes(range(32)), hash=bytes(32), created_at=AT, description="Grüße",
    metadata='{"order":7}',
)  # fmt: skip

# Pinned: ledgers exist that were written with these.
GENESIS = "ae5a8c161beedf7f72af8de4d603e4097f3520230022196c13cdcf9c9816db62"
LINK = "3828dc4001ec705116bcb1345dbce0d0c9d760a4a3d78e6d0de1a8a80fff952c"
BARE_LINK = "4476e08b4f46f456e559b1eb55324b3a24153df94b35705661342cb2631e9dd0"


def part(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def number(value: int) -> bytes:
    return part(value.to_bytes(8, "big", signed=True))


def test_the_genesis_is_the_digest_of_version_lengths_account_and_tenant() -> None:
    written_out = b"\x01" + bytes.fromhex("00000003 00000004") + b"annacme"

    assert hashlib.sha256(written_out).digest() == genesis(ANN, ACME)
    assert GENESIS == genesis(ANN, ACME).hex()


def test_a_link_is_the_digest_of_version_previous_hash_and_length_prefixed_fields() -> None:
    previous = genesis(ANN, ACME)
    written_out = (
        b"\x01" + previous
        + part(bytes.fromhex("01a20bde802876e88fa81bc6b37ddf49"))
        + number(500) + number(500) + number(0) + number(1)
        + number(1_767_323_045_678_901)
        + part(bytes(range(32)))
        + part(b"ann") + part(b"topup")
        + part("Grüße".encode())
        + part(hashlib.sha256(b'{"order":7}').digest())
    )  # fmt: skip

    assert hashlib.sha256(written_out).digest() == link_of(previous, ROW)
    assert LINK == link_of(previous, ROW).hex()


def test_a_field_that_is_not_there_is_no_empty_field() -> None:
    bare = msgspec.structs.replace(ROW, description=None, metadata=None)
    empty = msgspec.structs.replace(ROW, description="", metadata="")

    assert BARE_LINK == link_of(genesis(ANN, ACME), bare).hex()
    assert link_of(bytes(32), bare) != link_of(bytes(32), empty)


@pytest.mark.parametrize(
    "change",
    [
        {"transaction_id": UUID(int=1)}, {"account_id": "bob"}, {"kind": Kind.CONSUME},
        {"amount": 501}, {"balance": 501}, {"reserved": 1}, {"sequence": 2},
        {"fingerprint": bytes(32)}, {"created_at": AT + timedelta(microseconds=1)},
        {"description": "Grüsse"}, {"description": None}, {"metadata": "{}"}, {"metadata": None},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_is_in_the_hash(change: dict[str, object]) -> None:
    changed = msgspec.structs.replace(ROW, **change)

    assert link_of(bytes(32), ROW) != link_of(bytes(32), changed)


@pytest.mark.parametrize("terms", [{}, {"freed": 7, "payment": "{}"}])
@pytest.mark.parametrize("description", ["Grüße", None])
def test_what_is_hashed_can_be_taken_apart_and_put_together(
    terms: dict[str, object], description: str | None
) -> None:
    row = msgspec.structs.replace(ROW, description=description, **terms)
    previous, hashed = genesis(ANN, ACME), unlinked(row)
    fields = dict(fields_of(hashed))
    together = b"".join(b"\xff" * 4 if each is None else part(each) for each in fields.values())

    assert link_of(previous, row) == hashlib.sha256(b"\x01" + previous + together).digest()
    assert (b"ann", number(500)[4:]) == (fields["account_id"], fields["amount"])
    assert description == (fields["description"] and fields["description"].decode())
    assert (number(7)[4:] if terms else None) == fields.get("freed")
    assert (16 if terms else 11) == len(fields)


def test_the_previous_hash_is_in_the_hash() -> None:
    assert link_of(bytes(32), ROW) != link_of(bytes(31) + b"\1", ROW)


def test_a_moment_is_the_same_in_every_zone() -> None:
    elsewhere = AT.astimezone(timezone(timedelta(hours=-9, minutes=-30)))

    assert microseconds_since_epoch(AT) == microseconds_since_epoch(elsewhere)
    assert -1 == microseconds_since_epoch(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))


def chain_of(*balances: int) -> tuple[Account, list[Transaction]]:
    """Return an account whose balance took these values, with its rows."""
    head, rows = genesis(ANN, ACME), list[Transaction]()
    for sequence, balance in enumerate(balances, 1):
        change = balance - (rows[-1].balance if rows else 0)
        row = msgspec.structs.replace(
            ROW,
            sequence=sequence,
            balance=balance,
            amount=abs(change),
            kind=Kind.TOPUP if change > 0 else Kind.CONSUME,
        )
        head = link_of(head, row)
        rows.append(msgspec.structs.replace(row, hash=head))
    account = Account(
        account_id=ANN, tenant_id=ACME, shard=73, balance=balances[-1] if balances else 0,
        reserved=0, version=len(rows), head_hash=head, created_at=AT,
    )  # fmt: skip
    return account, rows


def faults_of(account: Account, rows: list[Transaction]) -> set[tuple[FaultKind, int]]:
    verifier = AccountVerifier(account)
    for row in rows:
        verifier.feed(row)
    verifier.finish()
    return {(fault.fault, fault.sequence) for fault in verifier.faults}


@pytest.mark.parametrize("balances", [(), (10,), (10, 4, 0, 7)])
def test_a_sound_chain_has_no_fault(balances: tuple[int, ...]) -> None:
    assert set() == faults_of(*chain_of(*balances))


Tamper = Callable[[list[Transaction]], list[Transaction]]
HASH, SEQUENCE, BALANCE, HEAD, *_ = FaultKind
TAMPERING: dict[str, tuple[Tamper, set[tuple[FaultKind, int]]]] = {
    "an edit": (
        lambda rows: [*rows[:2], msgspec.structs.replace(rows[2], description="x"), *rows[3:]],
        {(HASH, 3)},
    ),
    "a deletion": (
        lambda rows: [*rows[:2], *rows[3:]],
        {(SEQUENCE, 4), (BALANCE, 4), (HASH, 4)},
    ),
    "a truncation": (lambda rows: rows[:3], {(SEQUENCE, 0), (BALANCE, 0), (HEAD, 0)}),
    "a doubled row": (
        lambda rows: [*rows, rows[-1]],
        {(SEQUENCE, 4), (BALANCE, 4), (HASH, 4)},
    ),
    "nothing left": (lambda _: [], {(SEQUENCE, 0), (BALANCE, 0), (HEAD, 0)}),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_found_where_it_is(what: str) -> None:
    tamper, expected = TAMPERING[what]
    account, rows = chain_of(10, 4, 0, 7)

    assert expected == faults_of(account, tamper(rows))


def test_sums_are_those_of_the_rows() -> None:
    account, rows = chain_of(10, 4, 0, 7)
    verifier = AccountVerifier(account)
    for row in rows:
        verifier.feed(row)

    assert (17, 10) == (verifier.topped_up, verifier.consumed)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 3}, {(SEQUENCE, 0)}),
        ({"balance": 8}, {(BALANCE, 0)}),
        ({"reserved": 8}, {(BALANCE, 0)}),
        ({"head_hash": bytes(32)}, {(HEAD, 0)}),
        ({"tenant_id": "umbra"}, {(HASH, 1)}),
    ],
)
def test_an_account_that_does_not_match_its_rows_is_found(
    change: dict[str, object], expected: set[tuple[FaultKind, int]]
) -> None:
    account, rows = chain_of(10, 4, 0, 7)

    assert expected == faults_of(msgspec.structs.replace(account, **change), rows)
