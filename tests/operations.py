"""Hypothesis strategies for operations: few accounts, tenants and keys, so that they collide."""

from hypothesis import strategies as st
from tests.ledger import movement, opening

from tollkeeper.credits.model import Kind, Movement, OpenAccount
from tollkeeper.kernel.amounts import MAX_AMOUNT_MINOR

ACCOUNTS = ("ann", "bob", "cleo")
TENANTS = ("acme", "umbra")
KEYS = tuple(f"key-{number}" for number in range(6))

# Small amounts meet small balances; the largest show what 63 bits do.
amounts = st.one_of(
    st.integers(1, 20),
    st.integers(1, MAX_AMOUNT_MINOR),
    st.integers(MAX_AMOUNT_MINOR - 20, MAX_AMOUNT_MINOR),
)

# Text as JSON and PostgreSQL can keep it.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
documents = st.dictionaries(
    texts,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


def openings(prefix: str = "") -> st.SearchStrategy[OpenAccount]:
    return st.builds(
        opening, st.sampled_from(ACCOUNTS).map(prefix.__add__), st.sampled_from(TENANTS)
    )


def movements(prefix: str = "") -> st.SearchStrategy[Movement]:
    return st.builds(
        movement,
        st.sampled_from((Kind.TOPUP, Kind.CONSUME)),
        st.sampled_from(ACCOUNTS).map(prefix.__add__),
        amounts,
        st.sampled_from(KEYS) | st.uuids(version=4).map(str),
        tenant_id=st.none() | st.sampled_from(TENANTS),
        description=st.none() | texts.filter(bool),
        metadata=st.none() | documents,
        payment=st.none() | documents,
    )


def operations(prefix: str = "") -> st.SearchStrategy[OpenAccount | Movement]:
    """Three movements in four, most of them after somebody opened the account."""
    return st.one_of(openings(prefix), movements(prefix), movements(prefix), movements(prefix))
