"""When the demo's experiment has ended as it must."""

from datetime import UTC, datetime

from tollkeeper.client.shadow_messages import Deployment
from tollkeeper.trial import Trial

DEPLOYMENT = Deployment(
    deployment_id="d", experiment_id="checkout", tenant_id="default", variant="new", decision_no=1,
    input_digest="ab", deployed_at=datetime(2026, 1, 2, tzinfo=UTC), deployed_by="k",
)  # fmt: skip


def trial(deployment: Deployment | None, *differences: str) -> Trial:
    return Trial(
        experiment_id="checkout", units=5_000, purchases=600, looks=25,
        verdict="hold" if deployment is None else "deploy", probability_best=0.999, lift=0.3,
        seconds=1.5, deployment=deployment, differences=differences,
    )  # fmt: skip


def test_it_is_good_when_it_was_deployed_and_decided_again_alike() -> None:
    assert [True, False, False] == [
        trial(DEPLOYMENT).is_good,
        trial(DEPLOYMENT, "another byte").is_good,
        trial(None).is_good,
    ]


def test_what_went_wrong_is_shown() -> None:
    assert ("different", "another byte", "bad") in trial(DEPLOYMENT, "another byte").facts()
    assert "no: the experiment did not end as it must" in trial(None).facts()[-1]
    assert trial(None).document()["deployment_id"] is None
    assert trial(DEPLOYMENT, "x").document()["recomputed_identical"] is False
