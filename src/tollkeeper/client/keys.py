"""Typed calls that administer API keys; they need a key with the scope `admin`.

Invariant: a call that makes a token is sent again only while it is certain that none was made: the
token is in the one answer, and a lost answer leaves a key that nobody holds.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

import msgspec

from tollkeeper.client.caller import JSON, Caller
from tollkeeper.client.errors import AnswerMissing, TokenLost
from tollkeeper.client.messages import IssuedKey, Key, KeyEventPage, KeyPage

PAGE_LIMIT = 1_000
"""Most keys or events on one page."""


class KeysClient(Caller):
    """The keys of the service at a URL: see `Caller` for its connections, clock and retries."""

    async def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        tenant_id: str | None = None,
        expires_in_s: int | None = None,
    ) -> IssuedKey:
        """Make a key; its token is in the answer and nowhere else.

        Raises:
            TokenLost: no answer came, so a key may have been made whose token nobody has.
        """
        body: dict[str, object] = {"name": name, "scopes": list(scopes)}
        if tenant_id is not None:
            body["tenant_id"] = tenant_id
        if expires_in_s is not None:
            body["expires_in_s"] = expires_in_s
        return await self._issue("/v1/keys", body)

    async def rotate_key(
        self, key_id: str, *, grace_s: int | None = None, expires_in_s: int | None = None
    ) -> IssuedKey:
        """Change a key for a new one; the old one goes on working for `grace_s`, or a day.

        Raises:
            CallRefused: there is no such key, it has ended, or it was rotated before.
            TokenLost: no answer came, so it may have been rotated all the same.
        """
        asked = {"grace_s": grace_s, "expires_in_s": expires_in_s}
        body = {name: value for name, value in asked.items() if value is not None}
        return await self._issue(f"{_key_path(key_id)}/rotate", body)

    async def revoke_key(self, key_id: str, *, force: bool = False) -> Key:
        """End a key for good and return it; ending it again changes nothing.

        Raises:
            CallRefused: there is no such key, or it is the last that can administer all keys.
        """
        body = msgspec.json.encode({"force": force})
        return self._decode(
            await self._call("POST", f"{_key_path(key_id)}/revoke", JSON, body), Key
        )

    async def keys(self, *, after: str | None = None, limit: int = PAGE_LIMIT) -> KeyPage:
        """Return one page of keys, oldest first; `after` is a page's `next`."""
        return self._decode(await self._call("GET", _page("/v1/keys", after, limit)), KeyPage)

    async def key_events(
        self, *, after: str | None = None, limit: int = PAGE_LIMIT
    ) -> KeyEventPage:
        """Return one page of what was done to keys, oldest first; `after` is a page's `next`."""
        path = _page("/v1/keys/events", after, limit)
        return self._decode(await self._call("GET", path), KeyEventPage)

    async def _issue(self, path: str, body: Mapping[str, object]) -> IssuedKey:
        try:
            response = await self._call(
                "POST", path, JSON, msgspec.json.encode(body), is_repeatable=False
            )
            return self._decode(response, IssuedKey)
        except AnswerMissing as error:
            raise TokenLost(url=error.url, reason=str(error)) from error


def _key_path(key_id: str) -> str:
    return f"/v1/keys/{quote(key_id, safe='')}"


def _page(path: str, after: str | None, limit: int) -> str:
    cursor = f"&after={quote(after, safe='')}" if after is not None else ""
    return f"{path}?limit={limit}{cursor}"
