"""Every error of a slice has its problem: nothing a rule says becomes a 500."""

import pytest

from tollkeeper.access.errors import AccessError
from tollkeeper.app import PROBLEMS
from tollkeeper.credits.errors import CreditsError
from tollkeeper.kernel.errors import TollkeeperError
from tollkeeper.web.errors import WebError
from tollkeeper.web.problem import INTERNAL, kind_of


def leaves(error: type[TollkeeperError]) -> list[type[TollkeeperError]]:
    below = error.__subclasses__()
    return [leaf for each in below for leaf in leaves(each)] if below else [error]


@pytest.mark.parametrize(("tree", "least"), [(CreditsError, 10), (AccessError, 3), (WebError, 7)])
def test_every_error_has_a_problem(tree: type[TollkeeperError], least: int) -> None:
    found = leaves(tree)

    assert len(found) >= least
    assert [] == [error.__name__ for error in found if kind_of(error, PROBLEMS) is INTERNAL]


def test_no_two_problems_share_a_type_with_another_status_or_title() -> None:
    kinds = set(PROBLEMS.values())

    assert len({kind.type for kind in kinds}) == len(kinds)
