"""The pictures of `docs/accounts-and-money.md`: each is a script that the real ledger plays, and what it answered.

An account is asked every few minutes of billing time, and right before and right behind each command and each event of
time. Nothing is drawn that the ledger did not say: curves are fields of `get_account`, upright lines are entries. The
ledger is pure, so a picture is the same on every machine, and a test holds the files to this module.

    python -m tests.pictures.subjects     docs/pictures/{rate,overrun,…}.svg
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from markupsafe import Markup, escape

from billing import svg
from billing.ledger import commands as ops
from billing.ledger.classes import CutoffClass
from tests.ledger.driver import LedgerDriver

COIN: Final = 10**9
HOUR_NS: Final = 3_600 * 10**9
STEP_NS: Final = HOUR_NS // 4
USER: Final = "u"
FOLDER: Final = Path(__file__).parents[2] / "docs" / "pictures"

STYLE: Final = (
    "<style>svg{font:13px sans-serif;background:#fff}text{fill:#333}.grid{stroke:#ddd}.line{fill:none;stroke-width:2.5}"
    ".c0{stroke:#1668dc}.c1{stroke:#d4740c;stroke-dasharray:6 4}.key0{fill:#1668dc}.key1{fill:#d4740c}"
    ".mark{stroke:#888;stroke-dasharray:2 4}.bound{stroke:#c33;stroke-dasharray:4 4}"
    "@media(prefers-color-scheme:dark){svg{background:#16181d}text{fill:#ddd}.grid{stroke:#333}.c0{stroke:#6ea8ff}"
    ".key0{fill:#6ea8ff}.c1{stroke:#f0a75a}.key1{fill:#f0a75a}.mark{stroke:#888}}</style>"
)
EVENTS: Final = {
    "exhaust": "E",
    "credit_expired": "the credit ends",
    "lease_expired": "the lease ends",
    "grace_ended": "the URL is called",
}


class Step(NamedTuple):
    """A command of the script: at which hour, what stands in the picture, and the call."""

    hour: float
    label: str
    call: Callable[[LedgerDriver, int], Any]


class Subject(NamedTuple):
    """One picture. `curves`: field of `get_account` -> its words; fields of `accruing` are of a second account, which
    the same script meets under `after_exhaustion = "accrue"`.
    """

    name: str
    title: str
    hours: int
    steps: tuple[Step, ...]
    curves: Mapping[str, str]
    accruing: Mapping[str, str] = {}
    classes: Mapping[bytes, CutoffClass] = {}


def top_up(coins: float, comment: str = "", **more: Any) -> Callable[[LedgerDriver, int], Any]:
    """Adds money."""
    return lambda driver, at: driver.top_up(USER, int(coins * COIN), at=at, **more)


def rate(coins_an_hour: float, **more: Any) -> Callable[[LedgerDriver, int], Any]:
    """Sets the rate of the line `vm`."""
    return lambda driver, at: driver.set_rate(USER, int(coins_an_hour * COIN), at=at, resource="vm", **more)


def _lease(hours: float) -> bytes:
    return ops.number_option(ops.TTL_NS, int(hours * HOUR_NS))


def _capture(driver: LedgerDriver, at: int) -> Any:
    (held,) = driver.view(USER, at=at)["holds"]
    return driver.capture(USER, held["hold_id"], COIN, at=at)


SUBJECTS: Final = (
    Subject(
        "rate",
        "5 coins at half a coin an hour last ten hours; a top-up moves E",
        20,
        (
            Step(0, "5 coins", top_up(5)),
            Step(0, "", rate(0.5)),
            Step(6, "+ 3 coins", top_up(3)),
        ),
        {"available_nanos": "available"},
    ),
    Subject(
        "overrun",
        "Behind E: clamp counts overrun, accrue goes below zero and is paid first",
        16,
        (
            Step(0, "4 coins", top_up(4)),
            Step(0, "", rate(0.5)),
            Step(12, "+ 5 coins", top_up(5)),
        ),
        {"available_nanos": "clamp"},
        accruing={"available_nanos": "accrue"},
    ),
    Subject(
        "credit-limit",
        "A credit limit of 2 coins lets the balance reach -2",
        16,
        (
            Step(0, "4 coins", top_up(4)),
            Step(0, "", lambda driver, at: driver.set_credit_limit(USER, 2 * COIN, at=at)),
            Step(0, "", rate(0.5)),
        ),
        {"balance_nanos": "balance", "available_nanos": "available"},
    ),
    Subject(
        "holds",
        "A hold leaves the balance and lowers what is available; a capture takes part of it and frees the rest",
        16,
        (
            Step(0, "6 coins", top_up(6)),
            Step(0, "", rate(0.25)),
            Step(4, "hold 3", lambda driver, at: driver.hold(USER, 3 * COIN, at=at)),
            Step(10, "capture 1", _capture),
        ),
        {"balance_nanos": "balance", "available_nanos": "available"},
    ),
    Subject(
        "credits",
        "A credit of 4 coins that ends is spent first; its rest is gone at its end",
        20,
        (
            Step(0, "4 coins", top_up(4)),
            Step(0, "", rate(0.5)),
            Step(2, "+ 4 that end at 8", top_up(4, options=ops.number_option(ops.EXPIRES_AT_NS, 8 * HOUR_NS))),
        ),
        {"available_nanos": "available"},
    ),
    Subject(
        "lease",
        "A rate with a lease of 4 hours: reported again once, and zero by itself where nobody reports",
        16,
        (
            Step(0, "6 coins", top_up(6)),
            Step(0, "leased", rate(0.5, options=_lease(4))),
            Step(3, "reported again", rate(0.5, options=_lease(4))),
        ),
        {"available_nanos": "available"},
    ),
    Subject(
        "grace",
        "A class with 4 hours of grace: exhausted at E, called at E + 4 hours",
        16,
        (
            Step(0, "3 coins", top_up(3)),
            Step(0, "", lambda driver, at: driver.set_class(USER, "business", at=at)),
            Step(0, "", rate(0.5)),
        ),
        {"available_nanos": "available", "overrun_nanos": "overrun"},
        classes={b"business": CutoffClass(grace_ns=4 * HOUR_NS)},
    ),
    Subject(
        "statement",
        "A statement from hour 4 to hour 12: opening and closing are the balance there, the accrual lies between",
        16,
        (
            Step(0, "6 coins", top_up(6)),
            Step(0, "", rate(0.5)),
            Step(4, "from", lambda driver, at: None),
            Step(8, "+ 3 coins", top_up(3)),
            Step(12, "to", lambda driver, at: None),
        ),
        {"balance_nanos": "balance"},
    ),
)


class DrawnData(NamedTuple):
    """What the ledger answered: (hour, value) by field, and (hour, words) of what happened."""

    curves: dict[str, list[tuple[float, float]]]
    marks: list[tuple[float, str]]


def play(subject: Subject, *, accrue: bool) -> DrawnData:
    """Plays the script to its end."""
    driver = LedgerDriver(accrue=accrue, classes=dict(subject.classes))
    fields = subject.accruing if accrue else subject.curves
    curves: dict[str, list[tuple[float, float]]] = {field: [] for field in fields}
    marks: list[tuple[float, str]] = []

    def look(at_ns: int, hour: float) -> None:
        view = driver.view(USER, at=at_ns)
        for field, points in curves.items():
            points.append((hour, view[field] / COIN))

    every = range(0, subject.hours * HOUR_NS + 1, STEP_NS)
    instants = sorted({*every, *(int(step.hour * HOUR_NS) for step in subject.steps)})
    for at_ns in instants:
        hour = at_ns / HOUR_NS
        if at_ns:
            look(at_ns - 1, hour)
        for step in subject.steps:
            if step.hour == hour:
                step.call(driver, at_ns)
                marks += [(hour, step.label)] if step.label else []
        look(at_ns, hour)
    marks += [
        (row["at_ns"] / HOUR_NS, EVENTS[name]) for row in driver.rows(USER) if (name := row["operation"]) in EVENTS
    ]
    return DrawnData(curves, marks)


def draw(subject: Subject) -> str:
    """The picture as SVG."""
    clamped = play(subject, accrue=False)
    accrued = play(subject, accrue=True) if subject.accruing else DrawnData({}, [])
    shown = [(subject.curves[field], points) for field, points in clamped.curves.items()]
    shown += [(subject.accruing[field], points) for field, points in accrued.curves.items()]
    values = [value for _, points in shown for _, value in points]
    x, y = svg.linear(0, subject.hours, " h", 8), svg.linear(min(0.0, *values), max(values) * 1.35)
    lines = [svg.Line(label, f"c{number}", points) for number, (label, points) in enumerate(shown)]
    plain = svg.chart(subject.title, x, y, lines, marks=[(hour, "event", label) for hour, label in clamped.marks])
    width = svg.WIDTH - svg.RIGHT - svg.LEFT
    texts = []
    for number, (hour, label) in enumerate(sorted(clamped.marks)):
        at = svg.LEFT + x.share(hour) * width
        texts.append(f'<text x="{at + 4:.1f}" y="{svg.TOP + 12 + 15 * (number % 2)}">{escape(label)}</text>')
    for number, (label, _) in enumerate(shown):
        position = f'x="{svg.WIDTH - 12}" y="{svg.TOP + 12 + 16 * number}" text-anchor="end"'
        texts.append(f'<text class="key{number}" {position}>{escape(label)}</text>')
    opening, _, rest = str(plain).partition("<title>")
    return str(Markup(f"{opening}{STYLE}<title>{rest}".replace("</svg>", "".join(texts) + "</svg>\n")))


def main() -> None:
    """Writes all pictures."""
    for subject in SUBJECTS:
        (FOLDER / f"{subject.name}.svg").write_text(draw(subject))


if __name__ == "__main__":
    main()
