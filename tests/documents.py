"""What reference pages and OpenAPI documents of services have in common, for their tests."""

import shlex

import httpx


def request_of(command: str) -> httpx.Request:
    """Return what curl would send; `-H`, `-d` and `-X` are all that the examples use."""
    words = shlex.split(command.replace("\\\n", " "))
    pairs = list(zip(words[2::2], words[3::2], strict=True))
    headers = dict(value.split(": ", 1) for option, value in pairs if option == "-H")
    bodies = [value for option, value in pairs if option == "-d"]
    methods = [value for option, value in pairs if option == "-X"]
    return httpx.Request(
        methods[0] if methods else "POST" if bodies else "GET",
        words[1],
        headers=headers,
        content=bodies[0] if bodies else None,
    )
