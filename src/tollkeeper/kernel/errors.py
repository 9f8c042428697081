"""The root of every error Tollkeeper raises on purpose.

TollkeeperError
├── ConfigurationError        the operator's settings cannot work
├── DatabaseError             (database/errors.py)
├── WebError                  (web/errors.py)
├── CreditsError              (credits/errors.py)
├── AccessError               (access/errors.py)
├── ShadowError               (shadow/errors.py)
└── MigrationError            (migrate/errors.py)

Facts are fields. An error knows nothing of HTTP; each slice's `api.py` maps it to a status.
"""

from dataclasses import dataclass


@dataclass(eq=False, kw_only=True)
class TollkeeperError(Exception):
    """Base of all errors; `str()` is one sentence a person can act on."""

    def __str__(self) -> str:
        return self.message()

    def message(self) -> str:
        """Say in one sentence what happened and what to do."""
        return type(self).__name__


@dataclass(eq=False, kw_only=True)
class ConfigurationError(TollkeeperError):
    """A setting, an option or the machine does not allow what was asked."""

    problem: str

    def message(self) -> str:
        """Return the problem, which is a full sentence."""
        return self.problem
