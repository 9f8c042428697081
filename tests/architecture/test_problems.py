"""Every error of a slice has its problem: nothing a rule says becomes a 500."""

import pytest

from tollkeeper.access.errors import AccessError
from tollkeeper.app import PROBLEMS
from tollkeeper.credits.errors import CreditsError
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.shadow.errors import ShadowError
from tollkeeper.shadow_app import PROBLEMS as SHADOW_PROBLEMS
from tollkeeper.web.errors import WebError
from tollkeeper.web.problem import INTERNAL, ProblemTable, kind_of


def leaves(error: type[TollkeeperError]) -> list[type[TollkeeperError]]:
    below = error.__subclasses__()
    return [leaf for each in below for leaf in leaves(each)] if below else [error]


@pytest.mark.parametrize(
    ("tree", "table", "least"),
    [
        (CreditsError, PROBLEMS, 10),
        (AccessError, PROBLEMS, 3),
        (WebError, PROBLEMS, 7),
        (ShadowError, SHADOW_PROBLEMS, 20),
        (AccessError, SHADOW_PROBLEMS, 3),
        (WebError, SHADOW_PROBLEMS, 7),
    ],
)
def test_every_error_has_a_problem(
    tree: type[TollkeeperError], table: ProblemTable, least: int
) -> None:
    found = leaves(tree)

    assert len(found) >= least
    assert [] == [error.__name__ for error in found if kind_of(error, table) is INTERNAL]


def test_no_two_problems_share_a_type_with_another_status_or_title() -> None:
    kinds = {*PROBLEMS.values(), *SHADOW_PROBLEMS.values()}

    assert len({kind.type for kind in kinds}) == len(kinds)
