"""The list of changes that no test can notice stays true: each of its lines is still there to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from billing import ledger
from tests.ledger.mutants import LIST, change_of, listed

ROOM = Path(ledger.__file__).parent


def test_every_line_on_the_list_is_a_line_of_the_ledger() -> None:
    text = " ".join(" ".join(path.read_text().split()) for path in sorted(ROOM.glob("*.py")))
    gone = [was for was, _ in listed(LIST.read_text()) if " ".join(was.split()) not in text]
    assert gone == []


def test_every_change_on_the_list_has_a_reason_and_stands_there_once() -> None:
    reasons = listed(LIST.read_text())
    assert len(reasons) > 30
    assert all(len(why) > 20 for why in reasons.values())
    with pytest.raises(AssertionError, match="listed twice"):
        listed('[[equivalent]]\nwhy = "x"\nchanges = [["a", "b"], ["a", "b"]]\n')


def test_a_change_is_named_by_its_lines() -> None:
    diff = "--- x.py\n+++ x.py\n@@ -1,3 +1,3 @@\n f():\n-    return (1,\n-        2)\n+    return (1,\n+        3)\n"
    assert change_of(diff) == ("return (1, 2)", "return (1, 3)")
