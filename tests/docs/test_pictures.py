"""Each picture of the page about money is what the ledger says now, and stands on the page."""

import pytest

from tests.docs.pages import REPOSITORY
from tests.pictures.subjects import FOLDER, SUBJECTS, Subject, draw


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_a_picture_is_what_the_ledger_says(subject: Subject) -> None:
    assert (FOLDER / f"{subject.name}.svg").read_text() == draw(subject), "python -m tests.pictures.subjects"
    assert f"](pictures/{subject.name}.svg)" in (REPOSITORY / "docs" / "accounts-and-money.md").read_text()
