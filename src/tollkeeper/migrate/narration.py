"""What a run does, in sentences for people. Pure."""

from collections.abc import Callable, Mapping
from typing import Final

from tollkeeper.migrate.backup_errors import sized
from tollkeeper.migrate.report import Event, Tell

_TONES: Final[Mapping[str, frozenset[str]]] = {
    "good": frozenset(
        {"migrate.applied", "migrate.taken_back", "backup.verified", "rollback.swapped"}
    ),
    "warn": frozenset(
        {
            "migrate.again", "migrate.waiting", "migrate.waits_for_lock", "migrate.was_cut",
            "restore.space_unknown", "rollback.estimated", "rollback.closing", "rollback.counted",
            "rollback.reopened",
        }
    ),
    "bad": frozenset({"backup.verification_failed", "rollback.left_closed"}),
}  # fmt: skip


def sentence(event: Event) -> str | None:
    """Return what an event says in one line; None for one that is of interest to logs only."""
    said = None
    match event["event"]:
        case "migrate.applied":
            waited = event["lock_wait_ms"]
            suffix = f", of which {waited} ms waiting for locks" if waited else ""
            said = f"{event['file']}: applied in {event['duration_ms']} ms{suffix}"
        case "migrate.taken_back":
            said = f"{event['file']}: taken back in {event['duration_ms']} ms"
        case "migrate.again":
            said = f"{event['file']}: {event['reason']}; again in {event['wait_ms']:.0f} ms"
        case "migrate.waiting":
            said = f"{event['database']}: waiting for another runner: {event['holder']}"
        case "migrate.waits_for_lock":
            whom = f", held by {event['blockers']}" if event["blockers"] else ""
            said = (
                f"{event['file']}, line {event['line']}: waits for {event['mode']} on "
                f"{event['relation'] or 'a row or key'}{whom}"
            )
        case "migrate.was_cut":
            said = _cut(event)
        case str() as name if name.startswith(("backup.", "restore.")):
            said = _of_backup(name, event)
        case str() as name if name.startswith("rollback."):
            said = _of_rollback(name, event)
    return said


def _of_backup(name: str, event: Event) -> str | None:
    said = None
    match name:
        case "backup.started":
            said = f"{event['service']}: backing up ({event['reason']})"
        case "backup.taken":
            size = sized(int(str(event["bytes"])))
            said = f"{event['backup']}: {event['rows']} rows, {size}, {event['duration_s']} s"
        case "backup.verified":
            said = f"{event['backup']}: verified ({event['level']}) in {event['duration_s']} s"
        case "backup.deleted":
            said = f"{event['backup']}: deleted, {event['age_days']} days old"
        case "restore.started":
            said = f"{event['database']}: restoring {event['backup']} beside it"
        case "restore.space_unknown":
            said = f"{event['database']}: the server's free space is not known from here"
    return said


def _of_rollback(name: str, event: Event) -> str | None:
    said = None
    match name:
        case "rollback.estimated":
            said = f"{event['database']}: about {event['detail']} would be lost"
        case "rollback.closing":
            said = f"{event['database']}: closing it; if this is cut, open it with " + str(
                event["opens_again"]
            )
        case "rollback.counted":
            said = f"{event['database']}: {event['detail']} are lost"
        case "rollback.reopened":
            said = f"{event['name']}: a cut rollback had left it closed; it is open again"
        case "rollback.not_noted":
            said = (
                f"{event['database']}: its log of migrations does not say that it was swapped "
                f"({event['reason']})"
            )
        case "rollback.swapped":
            said = f"{event['database']}: {event['backup']} is live; kept as {event['kept']}"
    return said


def tone_of(event: Event) -> str:
    """Return whether an event is `good`, `bad`, a warning (`warn`), or nothing of these."""
    return next((tone for tone, names in _TONES.items() if event["event"] in names), "")


def colouring(say: Callable[[str, str], None]) -> Tell:
    """Return a listener that says what is of interest to people, with its tone."""

    def tell(event: Event) -> None:
        said = sentence(event)
        if said is not None:
            say(said, tone_of(event))

    return tell


def narrating(say: Callable[[str], None]) -> Tell:
    """Return a listener that says what is of interest to people."""

    def tell(event: Event) -> None:
        said = sentence(event)
        if said is not None:
            say(said)

    return tell


def _cut(event: Event) -> str:
    doing = "taken back" if event["is_down"] else "applied"
    where = f"at statement {event['statement']} of {event['of']}" if event["statement"] else ""
    return (
        f"{event['database']}: version {event['version']} was being {doing} at {event['at']} when "
        f"the run was cut {where}".rstrip()
        + "; it goes on from what is there"
    )
