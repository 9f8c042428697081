"""The tool in a process of its own, that can be killed where it stands, or met by a full disk.

    python backup_process.py DSN FOLDER take|full|short|roll_back|undo POINT [BACKUP]

Works until it tells of POINT (an event, or a step of its progress); then it writes `halted` and
waits to be killed. With `full` the disk of FOLDER, a small one of its own, is
filled at POINT instead; with `short` it is full from the beginning. Ends with the name of the error
that it met, and what is left in FOLDER.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.backups import SERVICE, Told, backed_up, equipment_in  # after the path is set

from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.rollback import roll_back, undo_rollback

ANY_LOSS = 10**9


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def halt() -> None:
    say("halted")
    sys.stdin.read()


async def work(dsn: str, action: str, backup: str, equipment: Equipment) -> None:
    if action in {"take", "full", "short"}:
        await backed_up(dsn, equipment)
    elif action == "roll_back":
        await roll_back(dsn, SERVICE, backup, accept_loss=ANY_LOSS, equipment=equipment)
    else:
        await undo_rollback(dsn, SERVICE, accept_loss=ANY_LOSS, equipment=equipment)


def main(dsn: str, folder: Path, arguments: Sequence[str]) -> None:
    action, point, backup = [*arguments, ""][:3]
    told = Told()
    if action in {"full", "short"}:
        from tests.full_disk_process import fill, mount_small_disk

        mount_small_disk(folder)
        if action == "short":
            fill(folder)
        told.at = lambda event: fill(folder) if event == point else None
    else:
        told.at = lambda event: halt() if event == point else None
    error = ""
    try:
        asyncio.run(work(dsn, action, backup, equipment_in(folder, told)))
    except TollkeeperError as failure:
        error = f"{type(failure).__name__}: {failure}"
    left = sorted(path.name for path in folder.iterdir())
    say(json.dumps({"error": error, "left": left}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
