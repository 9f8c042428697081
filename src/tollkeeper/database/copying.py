"""Reads many rows as a binary COPY, whose bytes go to whoever can use them as they are."""

from collections.abc import Callable

from tollkeeper.database.driver import Connection


async def copy_rows(
    connection: Connection,
    query: str,
    *arguments: object,
    take: Callable[[bytes], None],
    limit_s: float | None = None,
) -> None:
    """Hand what a query gives to `take` as it comes, in the form of a binary COPY.

    It may take `limit_s`, or as long as any statement of the connection. Where `take` fails, the
    rest is read and thrown away: the driver hangs up on a COPY that it cannot deliver, and a lost
    connection would be told instead of the failure.
    """
    failed: Exception | None = None

    async def sink(piece: bytes) -> None:
        nonlocal failed
        if failed is None:
            try:
                take(piece)
            except Exception as error:  # noqa: BLE001  # raised below
                failed = error

    # COPY takes the query in parentheses.
    text = query.removesuffix(";")
    await connection.copy_from_query(
        text, *arguments, output=sink, format="binary", timeout=limit_s
    )
    if failed is not None:
        raise failed
