"""What backup, verification, restore and rollback work with, handed in by whoever calls them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tollkeeper.kernel.clock import Clock
from tollkeeper.kernel.ids import EntropySource
from tollkeeper.migrate.backup_model import KeptBackup, Level
from tollkeeper.migrate.catalogue import Catalogue
from tollkeeper.migrate.inspection import Inspector
from tollkeeper.migrate.progress import Log, Progress, Silent, unlogged


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """The folder of backups, the machine's clock, and who is told."""

    catalogue: Catalogue
    clock: Clock
    entropy: EntropySource
    inspectors: Mapping[str, Inspector] = field(default_factory=dict)
    """By service; of one without, rows are compared and nothing is known of their meaning."""
    binaries: Sequence[Path] = ()
    """Folders with PostgreSQL's programs to look in first."""
    progress: Progress = field(default_factory=Silent)
    log: Log = unlogged

    def inspector(self, service: str) -> Inspector | None:
        """Return who knows what the rows of a database mean."""
        return self.inspectors.get(service)


def is_enough(kept: KeptBackup, level: Level) -> bool:
    """Say whether a backup was verified at least so far."""
    verified = kept.verified
    return verified is not None and verified.level.rank >= level.rank
