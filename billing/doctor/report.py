"""The result of an examination: faults, notes, and the numbers of checked things, which show what "no faults" means.

A *finding* is a fault: a state that must not occur. A *note* describes a state that is allowed, but that an operator
may want to know, such as a torn tail. All findings are counted, but at most `TOLD_MAX` for each check are printed,
because one cause can appear in a million places.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shards.counting import counted

TOLD_MAX: Final = 100
OWED_MAX: Final = 1000

# Every check, in the order of the report, with the text for the case without faults.
CHECKS: Final[dict[str, str]] = {
    "files": "every file parses, every checksum and link holds",
    "owners": "every bucket has one owner, and the map agrees",
    "accounts": "every entry says what comes out when it is worked out again",
    "conservation": "top-ups - debits - accrued + adjustments - paid out = balances, to the last unit",
    "requests": "every request_id stands for one entry while it is kept",
    "cutoffs": "what is owed and what is coming is what the entries say",
    "snapshots": "every snapshot holds the state of its position",
    "history": "every row is its entry, and the rows add up to the balances",
    "notices": "every owed notice is what was written, and none is behind a journal that is gone",
    "statements": "what its rows say of any period is what its entries say, in all and by line",
}


class Finding(NamedTuple):
    """One fault. `file`, `offset`, `position` and `account` give its place as far as known; otherwise "" or -1."""

    check: str
    text: str
    file: str = ""
    offset: int = -1
    position: int = -1
    account: str = ""

    def __str__(self) -> str:
        places = [self.file]
        if self.offset >= 0:
            places.append(f"offset {self.offset}")
        if self.position >= 0:
            places.append(f"position {self.position}")
        if self.account:
            places.append(f"account {self.account}")
        where = ", ".join(place for place in places if place)
        return f"{where}: {self.text}" if where else self.text


class Owed(NamedTuple):
    """An outside call that is owed, according to the entries."""

    user_id: str
    bucket_id: int
    kind: str  # "cutoff" or "restore"
    seq: int
    exhausted_at_ns: int


class Report:
    """Collects the results of the checks; the command prints it."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.faults: dict[str, int] = dict.fromkeys(CHECKS, 0)
        self.counts: dict[str, dict[str, int]] = {check: {} for check in CHECKS}
        self.unchecked: dict[str, list[str]] = {check: [] for check in CHECKS}
        self.classes: dict[bytes, int] = {}  # cutoff class -> accounts in it, the default left out
        self.sums: dict[str, int] = {}  # over all accounts, in internal units
        self.owed: list[Owed] = []  # at most `OWED_MAX`

    def fault(
        self, check: str, text: str, *, file: str = "", offset: int = -1, position: int = -1, account: bytes = b""
    ) -> None:
        """Records a finding of one of `CHECKS`."""
        self.faults[check] += 1
        if self.faults[check] <= TOLD_MAX:
            name = account.decode(errors="backslashreplace")
            self.findings.append(Finding(check, text, file, offset, position, name))

    def note(self, text: str) -> None:
        """Records a note, which is no fault."""
        self.notes.append(text)

    def not_checked(self, check: str, why: str) -> None:
        """Records that a check could not be made, or not completely."""
        self.unchecked[check].append(why)

    def count(self, check: str, what: str, number: int = 1) -> None:
        """Adds to the number of things (`what`) that a check has examined."""
        counts = self.counts[check]
        counts[what] = counts.get(what, 0) + number

    def add(self, what: str, amount: int) -> None:
        """Adds to one of the sums over all accounts, in internal units."""
        self.sums[what] = self.sums.get(what, 0) + amount

    def owe(self, owed: Owed) -> None:
        """Records an owed call. All are counted; the first `OWED_MAX` are listed."""
        self.count("cutoffs", f"{owed.kind}s owed")
        if len(self.owed) < OWED_MAX:
            self.owed.append(owed)

    @property
    def fault_count(self) -> int:
        """The number of all findings, printed or not."""
        return sum(self.faults.values())

    def summary(self) -> str:
        """The last line of the report."""
        things = (
            ("accounts", "account", "accounts"),
            ("accounts", "entry", "entries"),
            ("owners", "bucket", "buckets"),
        )
        looked_at = ", ".join(
            counted(self.counts[check].get(all_of, 0), singular, all_of) for check, singular, all_of in things
        )
        faults = self.fault_count
        return f"{looked_at}: {counted(faults, 'fault') if faults else 'no faults'}"

    def lines(self) -> list[str]:
        """The whole report as text: a line for each check, followed by its findings; then the notes and the summary."""
        lines = []
        for check, text in CHECKS.items():
            faults = self.faults[check]
            counts = ", ".join(f"{number} {what}" for what, number in self.counts[check].items())
            if faults:
                state = "FAULT"
            else:
                state = "ok" if counts else "-"
            result = counted(faults, "fault") if faults else text
            lines.append(f"{check:<13}{state:<7}{result}" + (f" ({counts})" if counts else ""))
            lines += [f"{'':<13}not checked: {why}" for why in self.unchecked[check]]
            lines += [f"{'':<13}{finding}" for finding in self.findings if finding.check == check]
            if faults > TOLD_MAX:
                lines.append(f"{'':<13}and {faults - TOLD_MAX} more")
        lines += [f"{'note':<20}{note}" for note in self.notes]
        lines.append(self.summary())
        return lines

    def as_map(self) -> dict[str, object]:
        """The whole report as plain data, for JSON."""
        return {
            "faults": self.fault_count,
            "summary": self.summary(),
            "checks": [
                {
                    "check": check,
                    "faults": self.faults[check],
                    "counts": self.counts[check],
                    "not_checked": self.unchecked[check],
                }
                for check in CHECKS
            ],
            "findings": [finding._asdict() for finding in self.findings],
            "sums": self.sums,
            "owed": [owed._asdict() for owed in self.owed],
            "notes": self.notes,
        }
