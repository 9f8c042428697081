"""What a run does, in sentences for people. Pure."""

from collections.abc import Callable

from tollkeeper.migrate.report import Event, Tell


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
    return said


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
