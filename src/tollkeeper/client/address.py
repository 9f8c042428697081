"""Where a service is, and the key that opens it; finds the ones of a local `tollkeeper up`.

`up` writes both into its data directory: the address into `up.json`, the development key into
`dev.key`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from tollkeeper.kernel.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A service's URL and an API key for it, which is never shown."""

    url: str
    api_key: str = field(repr=False)


def find_local(data: Path, name: str = "url") -> Address:
    """Return the address of the `tollkeeper up` that uses this data directory.

    `name` is what the service's address is called in `up.json`: `url` is that of credits.

    Raises:
        ConfigurationError: nothing runs there, or its files cannot be read.
    """
    data = data.expanduser()
    try:
        document = json.loads((data / "up.json").read_text(encoding="utf-8"))
        key = (data / "dev.key").read_text(encoding="utf-8").strip()
        return Address(url=str(document[name]), api_key=key)
    except FileNotFoundError as error:
        raise ConfigurationError(
            problem=f"nothing runs in {data}: start it with `tollkeeper up`, name its directory "
            f"with TOLLKEEPER_DATA, or set TOLLKEEPER_{name.upper()} and TOLLKEEPER_API_KEY."
        ) from error
    except KeyError as error:
        raise ConfigurationError(
            problem=f"what runs in {data} has no {error.args[0]} in its up.json: that service does "
            "not run there."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            problem=f"{data}/up.json and dev.key cannot be read: {error}."
        ) from error
