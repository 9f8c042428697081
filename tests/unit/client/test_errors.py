"""What the client's errors say to whoever reads them."""

import pytest

from tollkeeper.client.errors import CallFailed

CASES: list[tuple[CallFailed, str]] = [
    (CallFailed(status=402, type="t", title="No credits", detail="3 there"), "3 there"),
    (CallFailed(status=418, type="t", title="A teapot"), "A teapot (418)"),
    (CallFailed(status=502, type="t", title="Bad gateway"), "Bad gateway (502)"),
    (
        CallFailed(status=500, type="t", title="Internal error", facts={"request_id": "r-1"}),
        "the service could not do it: Internal error (500); its log says why, at request_id r-1",
    ),
]


@pytest.mark.parametrize(("error", "said"), CASES)
def test_a_failed_call_says_what_is_known_and_where_the_rest_is(
    error: CallFailed, said: str
) -> None:
    assert said == str(error)
