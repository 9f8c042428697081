"""Bodies that nobody would send on purpose, and what a service may answer to them."""

import json
from collections.abc import Sequence

import httpx
from hypothesis import strategies as st


def assert_is_problem(status: int, content_type: str, body: bytes) -> None:
    """Check that an answer is a problem of the caller's making, as RFC 9457 has it."""
    assert 400 <= status < 500, body
    assert content_type == "application/problem+json"
    assert status == json.loads(body)["status"]


def assert_is_answered(answer: httpx.Response) -> None:
    if answer.status_code >= 300:
        assert_is_problem(answer.status_code, answer.headers["content-type"], answer.content)


# Text as JSON has it, and as it must not have it: raw tokens between quotes.
texts = st.one_of(
    st.text(max_size=20).map(json.dumps),
    st.sampled_from([
        r'"\ud800"', r'"\udc00x"', r'"\u0000"', '"\0"', '"\x1f"', '"' + "a" * 10_000 + '"',
        '"' + "4 " * 5_000 + '"', r'"\q"', "'single'",
    ]),
)  # fmt: skip
numbers = st.one_of(
    st.integers().map(str),
    st.sampled_from([
        "0", "-0", "-1", "1.0", "1e0", "1e400", "-1e999", "NaN", "Infinity", "01", "+1", "0x10",
        "9223372036854775807", "9223372036854775808", "1" * 5_000, "1" * 20, ".5", "1.",
    ]),
)  # fmt: skip
values = st.recursive(
    texts | numbers | st.sampled_from(["null", "true", "false", "nul", "", "{", "]", "[[", "{}"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]"),
        st.lists(st.tuples(texts, inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
        ),
    ),
    max_leaves=8,
)


def hostile_bodies(names: Sequence[str], lists: str) -> st.SearchStrategy[bytes]:
    """Return bodies with members of these names, alone and in the list that a route takes."""
    members = st.lists(
        st.tuples(st.sampled_from(names).map(json.dumps), values), min_size=1, max_size=6
    )
    objects = members.map(lambda pairs: "{" + ",".join(f"{n}:{v}" for n, v in pairs) + "}")
    begun = f'{{"{lists}":['.encode()
    return st.one_of(
        objects.map(lambda text: text.encode("utf-8", "surrogatepass")),
        objects.map(lambda text: text.encode("utf-16", "surrogatepass")),
        st.lists(objects, max_size=3).map(
            lambda items: begun + ",".join(items).encode("utf-8", "surrogatepass") + b"]}"
        ),
        st.binary(max_size=100),
        st.sampled_from([
            b'{"metadata":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
            b"[" * 1_000_000,
            begun + b"{}," * 10_001 + b"{}]}",
            b'{"amount":1,"metadata":{' + b",".join(b'"%d":1' % n for n in range(5_000)) + b"}}",
            b'{"amount":1,"amount":2}',
            b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"{}\0", b"{} {}", b'{"amount":1}\n\n\n',
        ]),
    )  # fmt: skip
