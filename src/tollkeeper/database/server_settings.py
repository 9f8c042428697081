"""The embedded server's configuration as a pure function of the machine. Never less durability.

The values go on the server's command line, so that they hold whatever an older version wrote into
`postgresql.conf`.
"""

_MEBIBYTE = 1024 * 1024
_GIBIBYTE = 1024 * _MEBIBYTE

SHARED_BUFFERS_MIN_BYTES = 128 * _MEBIBYTE
SHARED_BUFFERS_MAX_BYTES = 2 * _GIBIBYTE
"""More than this gains little for a ledger whose hot pages are few; the rest is file cache."""

WAL_MIN_BYTES = 1 * _GIBIBYTE
WAL_MAX_BYTES = 8 * _GIBIBYTE
"""Room for 15 minutes of full load between checkpoints: page images are written less often."""

MAX_CONNECTIONS = 100


def server_settings(
    *, memory_bytes: int, disk_free_bytes: int, wal_compression: str
) -> dict[str, str]:
    """Return `name: value` for the server's command line."""
    buffers = _within(memory_bytes // 4, SHARED_BUFFERS_MIN_BYTES, SHARED_BUFFERS_MAX_BYTES)
    maintenance = _within(memory_bytes // 16, 64 * _MEBIBYTE, 512 * _MEBIBYTE)
    wal = _within(disk_free_bytes // 8, WAL_MIN_BYTES, WAL_MAX_BYTES)
    return {
        # Reached through a socket in a folder that is closed to other users, never the network.
        "listen_addresses": "",
        "unix_socket_permissions": "0700",
        "max_connections": str(MAX_CONNECTIONS),
        "shared_buffers": _megabytes(buffers),
        "effective_cache_size": _megabytes(max(memory_bytes // 2, buffers)),
        "maintenance_work_mem": _megabytes(maintenance),
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "wal_compression": wal_compression,
        "wal_buffers": "32MB",
        "max_wal_size": _megabytes(wal),
        "min_wal_size": _megabytes(min(wal, WAL_MIN_BYTES) // 2),
        "checkpoint_timeout": "15min",
        "checkpoint_completion_target": "0.9",
        # A hot account's row is updated thousands of times a second: clean up early and briskly.
        "autovacuum_naptime": "10s",
        "autovacuum_vacuum_scale_factor": "0.05",
        "autovacuum_analyze_scale_factor": "0.05",
        "autovacuum_vacuum_cost_limit": "2000",
        "random_page_cost": "1.1",
        # Compiling the commit statement costs more than running it.
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %q%a ",
    }


def _within(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes // _MEBIBYTE}MB"
