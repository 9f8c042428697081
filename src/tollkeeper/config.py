"""Settings: frozen, read once from the environment, printed with secrets masked."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tollkeeper.database.dsn import parse_dsn
from tollkeeper.database.pooler import Pooler
from tollkeeper.database.tuning import MAXIMUM
from tollkeeper.kernel.errors import ConfigurationError

CREDITS_PORT = 5004
"""Port of the credits service (DESIGN section 3)."""

SHADOW_PORT = 5005
"""Port of the shadow service."""

DRAIN_LIMIT_S = 3_600
"""Longest grace, and longest drain."""

_AT_LEAST: Final[Mapping[str, int]] = {
    "pool_size": 1,
    "pool_min": 0,
    "pool_waiting": 1,
    "replicas": 1,
    "lanes": 1,
    "queue_limit": 1,
    "batch_limit": 1,
    "body_limit_bytes": 1,
    "freeze_limit": 0,
    "backup_days": 1,
    "backup_minimum": 1,
    "log_requests_per_s": 0,
    "log_slow_s": 0,
    "slow_query_ms": 0,
}
_WITHIN: Final[Mapping[str, tuple[float, float, str]]] = {
    "credits_port": (1, 65_535, ""),
    "shadow_port": (1, 65_535, ""),
    "worker_port": (0, 65_535, ""),
    "pool_max": (1, MAXIMUM, ""),
    "acquire_timeout_s": (0.001, 3_600, " seconds"),
    "request_timeout_s": (0.001, 3_600, " seconds"),
    "checkpoint_period_s": (0.1, 86_400, " seconds"),
    "summary_period_s": (0.1, 86_400, " seconds"),
    "drain_grace_s": (0, DRAIN_LIMIT_S, " seconds"),
    "drain_timeout_s": (0, DRAIN_LIMIT_S, " seconds"),
    "reconcile_share": (0, 1, ""),
    "archive_after_quarters": (0, 400, " quarters"),
}
_POOLERS: Final = {each.value: each for each in Pooler}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says; every field is documented in `docs/guide/configuration.md`.

    Durations are seconds, sizes are counts or bytes as the name says.
    """

    credits_dsn: str | None = None
    access_dsn: str | None = None
    shadow_dsn: str | None = None
    locator_dsn: str | None = None
    cdefnet_dsn: str | None = None
    data: Path = Path(".tollkeeper")
    host: str = "127.0.0.1"
    credits_port: int = CREDITS_PORT
    shadow_port: int = SHADOW_PORT
    share_port: bool = False
    url: str | None = None
    shadow_url: str | None = None
    api_key: str | None = None
    pooler: Pooler = Pooler.NONE
    pool_size: int = 8
    pool_min: int = 1
    pool_max: int = 200
    pool_waiting: int = 10_000
    replicas: int = 1
    lanes: int = 2
    queue_limit: int = 32_768
    batch_limit: int = 2_000
    acquire_timeout_s: float = 5.0
    request_timeout_s: float = 30.0
    slow_query_ms: int = 100
    body_limit_bytes: int = 8 * 1024 * 1024
    drain_grace_s: float | None = None
    drain_timeout_s: float = 30.0
    checkpoint_key: Path | None = None
    checkpoint_period_s: float = 60.0
    checkpoint_file: Path | None = None
    checkpoint_url: str | None = None
    reconcile_share: float = 0.05
    summary_period_s: float = 300.0
    archive_after_quarters: int = 0
    freeze_limit: int = 100
    evidence: Path | None = None
    backups: Path | None = None
    backup_days: int = 30
    backup_minimum: int = 3
    pg_bin: Path | None = None
    worker_port: int = 0
    log_level: str = "info"
    log_format: str = "auto"
    log_requests_per_s: int = 50
    log_slow_s: float = 1.0

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise ConfigurationError(problem=f"{variable_of(name)} must be at least {least}.")
        for name, (low, high, unit) in _WITHIN.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigurationError(
                    problem=f"{variable_of(name)} must be {low:g}..{high:g}{unit}."
                )
        if self.archive_after_quarters == 1:
            raise ConfigurationError(
                problem=f"{variable_of('archive_after_quarters')} must be 0 (never) or at least 2: "
                "clocks and late corrections may still write to the quarter that has just ended."
            )
        if self.lanes > min(self.pool_size, 256):
            raise ConfigurationError(
                problem=f"{variable_of('lanes')} must not exceed {variable_of('pool_size')}: "
                "a lane needs a connection."
            )
        if self.pool_min > self.pool_size:
            raise ConfigurationError(
                problem=f"{variable_of('pool_min')} must not exceed {variable_of('pool_size')}."
            )
        for field in fields(self):
            if field.name.endswith("_dsn"):
                _check_dsn(variable_of(field.name), getattr(self, field.name))
        url = self.checkpoint_url
        if url is not None and urlsplit(url).scheme not in {"http", "https"}:
            raise ConfigurationError(
                problem=f"{variable_of('checkpoint_url')} must begin with http:// or https://."
            )

    def masked(self) -> dict[str, str | int | float | None]:
        """Return the settings for printing: no password, no key."""
        shown: dict[str, str | int | float | None] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name == "api_key":
                value = "***"
            elif value is not None and field.name == "checkpoint_url":
                value = f"{urlsplit(value).scheme}://{urlsplit(value).hostname}/***"
            elif value is not None and field.name.endswith("_dsn"):
                value = mask_dsn(value)
            shown[field.name] = str(value) if isinstance(value, Path) else value
        return shown


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"TOLLKEEPER_{name.upper()}"


def check_session(settings: Settings, who: str) -> None:
    """Refuse what `who` cannot do without a session of its own.

    Raises:
        ConfigurationError: the setting says that there is none.
    """
    if settings.pooler is not Pooler.NONE:
        raise ConfigurationError(
            problem=f"{who} holds locks of a session: give it a DSN that leads to PostgreSQL "
            f"itself, and {variable_of('pooler')}={Pooler.NONE}."
        )


def cannot_listen(host: str, port: int, cause: OSError, *, option: str) -> ConfigurationError:
    """Return the error of an address that is in use, or cannot be bound."""
    reason = (cause.strerror or str(cause)).lower()
    return ConfigurationError(
        problem=f"Cannot listen on {host}:{port}: {reason}. Choose another with {option}."
    )


def _check_dsn(variable: str, dsn: str | None) -> None:
    """Refuse what cannot be understood before anything starts; no word of it is repeated."""
    if dsn is not None:
        parse_dsn(dsn, name=variable)


def mask_dsn(dsn: str) -> str:
    """Return a DSN without its secrets; nothing of one that cannot be understood."""
    try:
        return parse_dsn(dsn).masked
    except ConfigurationError:
        return "***"


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from `TOLLKEEPER_*` variables.

    Raises:
        ConfigurationError: a value that is not of its type, out of range, or an unknown variable.
    """
    known = {variable_of(field.name): field for field in fields(Settings)}
    values: dict[str, object] = {}
    for variable, text in environment.items():
        if not variable.startswith("TOLLKEEPER_") or not text:
            continue
        field = known.get(variable)
        if field is None:
            raise ConfigurationError(
                problem=f"{variable} is not a setting; known are {', '.join(sorted(known))}."
            )
        values[field.name] = _parse(variable, text, str(field.type))
    return Settings(**values)  # type: ignore[arg-type]  # each value was parsed to its field's type


def _parse(variable: str, text: str, kind: str) -> object:
    try:
        if "int" in kind:
            return int(text)
        if "float" in kind:
            return float(text)
        if "bool" in kind:
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        if "Pooler" in kind:
            return _POOLERS[text]
    except KeyError as error:
        allowed = " or ".join(_POOLERS) if "Pooler" in kind else "1 or 0"
        raise ConfigurationError(problem=f"{variable} must be {allowed}, not {text!r}.") from error
    except ValueError as error:
        raise ConfigurationError(problem=f"{variable} must be a number, not {text!r}.") from error
    return Path(text) if "Path" in kind else text
