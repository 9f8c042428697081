"""The composition root of backups: from settings to what they are taken and verified with.

Apart from `wiring.py` for one reason: a command that looks at backups shall not load the server.
"""

from pathlib import Path

from prometheus_client import CollectorRegistry

from tollkeeper.config import Settings
from tollkeeper.credits.inspection import LedgerInspector
from tollkeeper.kernel.clock import SystemClock
from tollkeeper.kernel.ids import system_entropy
from tollkeeper.migrate.backup_metrics import BackupCollector
from tollkeeper.migrate.catalogue import Catalogue
from tollkeeper.migrate.equipment import Equipment
from tollkeeper.migrate.model import DATABASES
from tollkeeper.migrate.progress import Log, Progress


def backup_equipment(
    settings: Settings, folder: Path, *, log: Log, progress: Progress
) -> Equipment:
    """Make what backups are taken, verified and restored with."""
    clock = SystemClock()
    return Equipment(
        catalogue=Catalogue(folder),
        clock=clock,
        entropy=system_entropy,
        inspectors={"credits": LedgerInspector(clock)},
        binaries=() if settings.pg_bin is None else (settings.pg_bin.expanduser(),),
        progress=progress,
        log=log,
    )


def folder_of(settings: Settings) -> Path:
    """Return the folder of backups and logs of runs."""
    return (settings.backups or settings.data / "backups").expanduser().absolute()


def watch_backups(settings: Settings, registry: CollectorRegistry) -> None:
    """Let scrapes see how the configured databases are backed up."""
    configured = [name for name in DATABASES if getattr(settings, f"{name}_dsn") is not None]
    BackupCollector(Catalogue(folder_of(settings)), configured, registry)
