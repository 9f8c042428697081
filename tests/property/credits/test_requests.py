"""Whatever a caller sends: an operation or an `InvalidRequest`, and equal requests are equal."""

import contextlib
import json

from hypothesis import example, given
from hypothesis import strategies as st
from tests.ledger import movement
from tests.operations import documents, movements

from tollkeeper.credits.errors import InvalidRequest
from tollkeeper.credits.masking import mask_document, mask_text
from tollkeeper.credits.model import Kind, Movement
from tollkeeper.credits.requests import METADATA_LIMIT_BYTES, canonical_metadata
from tollkeeper.kernel.ids import shard_of, uuid7_milliseconds

any_text = st.text(st.characters())  # lone surrogates and NUL among them
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(any_text, inner)
        | st.dictionaries(st.integers(), inner)
        | st.tuples(inner)
    ),
)


@given(st.dictionaries(any_text, anything), any_text)
@example({"city": "\ud800"}, "fine")
@example({"\udfff": 1}, "fine")
@example({}, "\ud800")
@example({}, "\0")
@example({"digits": 10**5_000}, "fine")
def test_any_text_and_any_metadata_is_an_operation_or_an_invalid_request(
    metadata: dict[str, object], description: str
) -> None:
    made: Movement | None = None
    with contextlib.suppress(InvalidRequest):
        made = movement(Kind.TOPUP, "ann", 1, "key", metadata=metadata, description=description)
    if made is None:
        return

    assert mask_text(description) == made.description
    assert made.metadata is not None
    assert METADATA_LIMIT_BYTES >= len(made.metadata.encode())


@given(documents)
def test_canonical_metadata_is_the_same_document_masked_and_canonical_already(
    document: dict[str, object],
) -> None:
    text = canonical_metadata(document)

    assert mask_document(document) == json.loads(text)
    assert text == canonical_metadata(json.loads(text))


@given(documents, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(document: dict[str, object], random: object) -> None:
    keys = list(document)
    random.shuffle(keys)  # type: ignore[attr-defined]  # Hypothesis hands out a random.Random

    assert canonical_metadata(document) == canonical_metadata({key: document[key] for key in keys})


@given(movements(), movements())
def test_fingerprints_are_equal_exactly_for_equal_requests(one: Movement, other: Movement) -> None:
    def asked(operation: Movement) -> tuple[object, ...]:
        return (
            operation.kind, operation.amount, operation.description, operation.metadata,
            operation.payment,
        )  # fmt: skip

    assert (asked(one) == asked(other)) == (one.fingerprint == other.fingerprint)


@given(movements())
def test_an_operation_carries_the_shard_of_its_account(operation: Movement) -> None:
    assert shard_of(operation.account_id) == operation.shard


@given(st.text() | st.uuids().map(str) | st.text("0123456789abcdef-7", min_size=36, max_size=36))
def test_any_text_has_the_time_of_a_uuid7_or_none(text: str) -> None:
    milliseconds = uuid7_milliseconds(text)

    assert milliseconds is None or 0 <= milliseconds < 2**48
