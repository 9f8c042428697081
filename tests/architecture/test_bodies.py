"""What `web.body` counts on: a body that was decoded leaves defaults out when written again."""

import msgspec
import pytest

from tollkeeper.access import messages as access_messages
from tollkeeper.credits import alert_messages, freeze_messages
from tollkeeper.credits import messages as credits_messages
from tollkeeper.shadow import decision_messages, outcome_messages
from tollkeeper.shadow import messages as shadow_messages

BODIES = [
    kind
    for module in (
        access_messages,
        alert_messages,
        credits_messages,
        freeze_messages,
        shadow_messages,
        outcome_messages,
        decision_messages,
    )
    for name, kind in sorted(vars(module).items())
    if name.endswith(("Body", "Item"))
    and isinstance(kind, type)
    and kind.__module__ == module.__name__
]


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: str(kind.__name__))
def test_a_body_leaves_out_defaults(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.omit_defaults
    assert kind.__struct_config__.forbid_unknown_fields
