"""How the errors of keys look over HTTP. Keys are made on the command line: there are no routes."""

from tollkeeper.access.errors import KeyInvalid, KeysUnavailable, KeyUnknown
from tollkeeper.web.problem import URN, ProblemKind, ProblemTable

PROBLEMS: ProblemTable = {
    KeyUnknown: ProblemKind(401, URN + "key-unknown", "Unknown API key"),
    KeyInvalid: ProblemKind(400, URN + "key-invalid", "The key cannot be made"),
    KeysUnavailable: ProblemKind(503, URN + "keys-unavailable", "Keys cannot be checked"),
}
