"""Signed notes: a text, and below it who signed it. Pure.

The format is C2SP's signed note (c2sp.org/signed-note), which other tools read and countersign: the
text, an empty line, and a line `— name base64` for each signature. Keys are Ed25519 and written as
that specification and Go's `golang.org/x/mod/sumdb/note` write them. What the text says is not
known here (`checkpoint.py`).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tollkeeper.credits.errors import NoteInvalid

KEY_BYTES = 32
"""Bytes of an Ed25519 seed and of a public key."""

NOTE_LIMIT_BYTES = 65_536
"""A note is never larger: ours have 400 bytes, and room for the signatures of many witnesses."""

SIGNATURE_MARK = "— "

_ED25519 = b"\x01"
_HASH_BYTES = 4
_NAME = re.compile(r"[^\s+]+")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class VerifyingKey:
    """A public key and its name; `text` is `name+hash+base64`."""

    name: str
    public: bytes

    @property
    def text(self) -> str:
        """Return the key as it is written in a file."""
        return f"{self.name}+{self.hash.hex()}+{base64_of(_ED25519 + self.public)}"

    @cached_property
    def hash(self) -> bytes:
        """Return what signatures name the key by."""
        material = self.name.encode() + b"\n" + _ED25519 + self.public
        return hashlib.sha256(material).digest()[:_HASH_BYTES]

    def is_named_by(self, name: str, signature: bytes) -> bool:
        """Whether a signature of a note says that it is this key's, and not another of its name."""
        return self.name == name and self.hash == signature[:_HASH_BYTES]

    def is_signed(self, text: str, signature: bytes) -> bool:
        """Whether `signature` is this key's over `text`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A private key and its name; its secret is never shown."""

    name: str
    seed: bytes = field(repr=False)

    @cached_property
    def verifying(self) -> VerifyingKey:
        """Return the public half."""
        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        return VerifyingKey(self.name, public)

    @property
    def text(self) -> str:
        """Return the key as it is written in a file that nobody else may read."""
        secret = base64_of(_ED25519 + self.seed)
        return f"PRIVATE+KEY+{self.name}+{self.verifying.hash.hex()}+{secret}"

    def sign(self, text: str) -> str:
        """Return `text` as a note signed with this key.

        Raises:
            NoteInvalid: the text cannot be signed: it does not end its last line.
        """
        _check_text(text)
        signature = Ed25519PrivateKey.from_private_bytes(self.seed).sign(text.encode())
        line = f"{SIGNATURE_MARK}{self.name} {base64_of(self.verifying.hash + signature)}\n"
        return f"{text}\n{line}"


def make_key(name: str, seed: bytes) -> SigningKey:
    """Return a key from `KEY_BYTES` fresh random bytes.

    Raises:
        NoteInvalid: the name is empty, or has a space or a plus sign.
    """
    if _NAME.fullmatch(name) is None or _CONTROL.search(name):
        raise NoteInvalid(problem="the name of a key has no spaces, no plus sign, and is not empty")
    if len(seed) != KEY_BYTES:
        raise NoteInvalid(problem=f"an Ed25519 key is made of {KEY_BYTES} bytes")
    return SigningKey(name, seed)


def signing_key(text: str) -> SigningKey:
    """Return the private key that `text` is.

    Raises:
        NoteInvalid: it is none.
    """
    kind, _, rest = text.strip().partition("+KEY+")
    if kind != "PRIVATE":
        raise NoteInvalid(problem="not a private key: it begins with PRIVATE+KEY+")
    name, digest, seed = _parts(rest)
    key = make_key(name, seed)
    if key.verifying.hash.hex() != digest:
        raise NoteInvalid(problem="not a private key: its hash is not that of its name and key")
    return key


def verifying_key(text: str) -> VerifyingKey:
    """Return the public key that `text` is.

    Raises:
        NoteInvalid: it is none.
    """
    name, digest, public = _parts(text.strip())
    key = VerifyingKey(name, public)
    if key.hash.hex() != digest:
        raise NoteInvalid(problem="not a public key: its hash is not that of its name and key")
    return key


def open_note(note: str, keys: Sequence[VerifyingKey]) -> str:
    """Return the text of a note that one of `keys` signed.

    Signatures of unknown keys are passed over; a wrong one of a known key is never.

    Raises:
        NoteInvalid: it is no note, nobody known signed it, or a signature is wrong.
    """
    text, signatures = split_note(note)
    is_signed = False
    for name, signature in signatures:
        for key in keys:
            if key.is_named_by(name, signature):
                if not key.is_signed(text, signature[_HASH_BYTES:]):
                    raise NoteInvalid(problem=f"the signature of {name} is wrong")
                is_signed = True
    if not is_signed:
        names = ", ".join(name for name, _ in signatures)
        raise NoteInvalid(problem=f"none of the given keys signed it (signed by {names})")
    return text


def split_note(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Return a note's text and its signatures: name, and hash of the key with the signature.

    Raises:
        NoteInvalid: it is no note.
    """
    # The last empty line: C2SP lets a text have empty lines of its own.
    body, blank, below = note.rpartition("\n\n")
    text = f"{body}\n"
    if not blank or not below.endswith("\n"):
        raise NoteInvalid(problem="not a note: text, an empty line, and signatures are expected")
    _check_text(text)
    signatures = [_signature(line) for line in below[:-1].split("\n")]
    return text, signatures


def notes_in(lines: Iterable[str]) -> Iterator[str]:
    """Yield the notes of a file, whose texts have no empty lines, one after the other.

    `lines` keep their newlines. Empty lines between notes are passed over.

    Raises:
        NoteInvalid: something is not a note, or the last one is torn.
    """
    note, is_below, size = "", False, 0
    for number, line in enumerate(lines, start=1):
        if is_below and not line.startswith(SIGNATURE_MARK):
            yield note
            note, is_below, size = "", False, 0
        if not note and line == "\n":
            continue
        if note.endswith("\n\n") and not line.startswith(SIGNATURE_MARK):
            raise NoteInvalid(problem=f"line {number}: a signature is expected")
        is_below = line.startswith(SIGNATURE_MARK) and note.count("\n\n") == 1
        size += len(line)
        if not line.endswith("\n") or size > NOTE_LIMIT_BYTES:
            raise NoteInvalid(problem=f"line {number}: the note is torn or no note")
        note += line
    if note and not is_below:
        raise NoteInvalid(problem="the last note is torn")
    if note:
        yield note


def _signature(line: str) -> tuple[str, bytes]:
    name, _, encoded = line.removeprefix(SIGNATURE_MARK).partition(" ")
    if not line.startswith(SIGNATURE_MARK) or _NAME.fullmatch(name) is None:
        raise NoteInvalid(problem="not a note: a line below the text is no signature")
    signature = bytes_of(encoded)
    if len(signature) <= _HASH_BYTES:
        raise NoteInvalid(problem=f"the signature of {name} is too short")
    return name, signature


def _check_text(text: str) -> None:
    if not text.endswith("\n") or _CONTROL.search(text):
        raise NoteInvalid(problem="the text of a note ends with a newline and has no controls")


def _parts(text: str) -> tuple[str, str, bytes]:
    name, _, rest = text.partition("+")
    digest, _, encoded = rest.partition("+")
    material = bytes_of(encoded)
    if _NAME.fullmatch(name) is None or len(digest) != 2 * _HASH_BYTES:
        raise NoteInvalid(problem="not a key: it is written name+hash+base64")
    if material[:1] != _ED25519 or len(material) != 1 + KEY_BYTES:
        raise NoteInvalid(problem="not an Ed25519 key")
    return name, digest, material[1:]


def base64_of(value: bytes) -> str:
    """Return base64 as notes write it."""
    return base64.b64encode(value).decode()


def bytes_of(text: str) -> bytes:
    """Return what base64 stands for.

    Raises:
        NoteInvalid: it is none, or not as it is written.
    """
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteInvalid(problem="not base64") from error
    if base64_of(value) != text:  # bits that nothing says: two notes would be one
        raise NoteInvalid(problem="not base64 as it is written")
    return value
