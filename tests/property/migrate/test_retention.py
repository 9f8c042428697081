"""Whatever backups there are, what is needed stays."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from tests.backup_values import NOW, kept_backup, verification

from tollkeeper.migrate.backup_model import KeptBackup, Level
from tollkeeper.migrate.retention import Policy, expired

verifications = st.lists(
    st.builds(verification, st.sampled_from(Level), fault=st.sampled_from([None, None, "damaged"])),
    max_size=3,
).map(tuple)


@st.composite
def folders(draw: st.DrawFn) -> list[KeptBackup]:
    """Backups of two databases; some from a clock that was ahead."""
    hours = st.integers(-100, 24 * 100)
    return [
        kept_backup(
            at=NOW - timedelta(hours=draw(hours)),
            service=draw(st.sampled_from(["credits", "access"])),
            verifications=draw(verifications),
            is_pinned=draw(st.sampled_from([False, False, True])),
            number=number,
        )
        for number in range(draw(st.integers(0, 12)))
    ]


policies = st.builds(Policy, days=st.integers(1, 60), minimum=st.integers(1, 4))


@given(folders(), policies)
def test_nothing_goes_that_is_young_pinned_or_needed(
    backups: list[KeptBackup], policy: Policy
) -> None:
    gone = {each.backup.id for each in expired(backups, now=NOW, policy=policy)}

    for each in backups:
        if each.is_pinned or NOW - each.backup.started_at <= timedelta(days=policy.days):
            assert each.backup.id not in gone
    for service in ("credits", "access"):
        good = sorted(
            (each for each in backups if each.is_good and each.backup.service == service),
            key=lambda each: (each.backup.started_at, each.backup.id),
        )
        assert not gone & {each.backup.id for each in good[-policy.minimum :]}
        if len(good) < policy.minimum:
            assert not [each for each in gone if each.startswith(service)]


@given(folders(), policies)
def test_what_is_left_is_left_the_second_time(backups: list[KeptBackup], policy: Policy) -> None:
    gone = {each.backup.id for each in expired(backups, now=NOW, policy=policy)}
    left = [each for each in backups if each.backup.id not in gone]

    assert [] == list(expired(left, now=NOW, policy=policy))


@given(folders(), policies)
def test_what_nobody_needs_goes(backups: list[KeptBackup], policy: Policy) -> None:
    """With enough good ones there is nothing old and unverified left."""
    gone = {each.backup.id for each in expired(backups, now=NOW, policy=policy)}

    for service in ("credits", "access"):
        ours = [each for each in backups if each.backup.service == service]
        if sum(each.is_good for each in ours) >= policy.minimum:
            old = {
                each.backup.id
                for each in ours
                if NOW - each.backup.started_at > timedelta(days=policy.days)
                and not each.is_good
                and not each.is_pinned
            }
            assert old <= gone
