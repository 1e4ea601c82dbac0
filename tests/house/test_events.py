"""Each warning and worse that is logged stands in the operator's table of events, with what to do; and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from billing.service.events import EVENTS
from tests.house.source import ROOMS, Module, module_of, modules

LEVELS = {"warning", "error", "critical", "exception"}


def logged(module: Module) -> Iterator[tuple[str, str, str]]:
    """(where, level, the words) of each warning and worse; words that are not there as they stand as they are told."""
    for node in module.nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in LEVELS:
            continue
        if isinstance(node.func.value, ast.Name) and node.func.value.id in ("log", "logger"):
            message = node.args[0]
            text = message.value if isinstance(message, ast.Constant) else ast.unparse(message)
            yield f"{module.path}:{node.lineno}", node.func.attr, str(text)


def all_logged() -> list[tuple[str, str, str]]:
    return [event for module in modules(*ROOMS) for event in logged(module)]


def test_every_warning_says_what_to_do() -> None:
    unknown = [(where, message) for where, _, message in all_logged() if message not in EVENTS]
    assert unknown == [], "to be added to billing/service/events.py, with what an operator is to do"


def test_words_that_are_logged_in_two_places_are_one_event() -> None:
    levels: dict[str, set[str]] = {}
    for _, level, message in all_logged():
        levels.setdefault(message, set()).add(level)
    assert {
        message: levels_of_message for message, levels_of_message in levels.items() if len(levels_of_message) > 1
    } == {}, "an error and a remark are two"


def test_no_event_is_left_that_nobody_logs() -> None:
    there = {message for _, _, message in all_logged()}
    assert [event.name for event in EVENTS.values() if event.says not in there] == []


def test_events_name_each_of_their_values_once() -> None:
    assert len({event.name for event in EVENTS.values()}) == len(EVENTS)
    for event in EVENTS.values():
        assert event.says.count("%") == len(event.values), event.name
        assert len(event.do) > 10, event.name


def test_the_rule_sees() -> None:
    assert list(logged(module_of("x.py", "log.warning('a %d', 1)"))) == [("x.py:1", "warning", "a %d")]
    assert list(logged(module_of("x.py", "log.error(text)"))) == [("x.py:1", "error", "text")]
    assert not list(logged(module_of("x.py", "log.info('a')")))
