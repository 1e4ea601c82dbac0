"""Describes an account for a person in sentences: whether and when the money runs out, and what follows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from billing.cli.values import Look, coins, moment, printable, rate_lines, span
from shards.counting import counted

# Used if the exhaustion lies beyond 2**63-1 nanoseconds since the epoch, the last instant that can be represented.
NOT_WITHIN_SIGHT: Final = "does not run out before the year 2262"
NO_MONEY: Final = "it has no money left"
DEFAULT_CLASS: Final = "default"
IN_FLIGHT: Final = "in flight"  # the word of `explain` for a call without an answer yet
NOT_SPENT: Final = "does not run out: nothing is being spent"


def standing(account: Mapping[Any, Any], look: Look) -> dict[str, tuple[str, str]]:
    """Field -> (label, text) for fields of an account whose value alone (such as nil) would not tell a person enough. A
    field with an empty label is not shown. Empty if the map describes no account.
    """
    if "exhausts_at_ns" not in account or "state" not in account:
        return {}
    if "paid_out_nanos" in account:  # the reply of closing it
        return {"state": ("state", "closed"), "exhausts_at_ns": ("", ""), "runway_ns": ("", "")}
    if account["state"] == "exhausted":
        cutoff = account.get("cutoff")
        label = "ran out at" if isinstance(cutoff, Mapping) and "exhausted_at_ns" in cutoff else "runs out at"
        return {"exhausts_at_ns": (label, ran_out(account, look)), "runway_ns": ("", "")}
    if account["exhausts_at_ns"] is None:
        return {
            "exhausts_at_ns": ("runs out at", NOT_WITHIN_SIGHT if account.get("rate_nanos_per_hour") else NOT_SPENT),
            "runway_ns": ("", ""),
        }
    return {"exhausts_at_ns": ("runs out at", moment(account["exhausts_at_ns"], look)), "runway_ns": ("lasts for", "")}


def closing_told(user: str, closing: Mapping[Any, Any]) -> str:
    """What becomes of a user's money with the closing of the account, given the reply of that closing."""
    paid, forfeited = coins(closing["paid_out_nanos"]), closing["forfeited_nanos"]
    lost = f", and {coins(forfeited)} that would expire are forfeited" if forfeited else ""
    return f"{printable(user)} has {paid} coins, which are paid out{lost}."


def ran_out(account: Mapping[Any, Any], look: Look) -> str:
    """When an exhausted account ran out, and when it was cut off, as far as the reply's `cutoff` contains that."""
    cutoff = account.get("cutoff")
    if not isinstance(cutoff, Mapping) or "exhausted_at_ns" not in cutoff:
        return NO_MONEY
    text = moment(cutoff["exhausted_at_ns"], look)
    return f"{text}, {called(cutoff)}" if "status" in cutoff else text


def called(cutoff: Mapping[Any, Any]) -> str:
    """The state or outcome of a cutoff's call."""
    attempts = cutoff.get("attempts", 0)
    tries = attempts_of(cutoff)
    match cutoff["status"]:
        case "delivered" | "effective":
            delivered_ns = cutoff.get("delivered_at_ns")
            if delivered_ns is None:
                return "cut off at the first attempt" if attempts <= 1 else f"cut off after {tries}"
            return f"cut off {milliseconds(delivered_ns - cutoff['exhausted_at_ns'])} later"
        case "pending":
            error = cutoff.get("last_error")
            begun = f": {tries}, none with a 2xx so far"  # the last one may be under way
            failed = f"; the last error: {printable(str(error))}" if error else ""
            return "not cut off yet" + (begun + failed if attempts else "")
        case "in_grace":
            return "not cut off yet: its grace is running"
        case "superseded":
            return "not cut off, since money came before the call"
    return f"the cutoff is {cutoff['status']} after {tries}"


def attempts_of(call: Mapping[Any, Any]) -> str:
    """`1 attempt`, `12 attempts`."""
    attempts = call.get("attempts", 0)
    return counted(attempts, "attempt")


def milliseconds(duration_ns: int) -> str:
    """`0.512 ms` for a span below a second, otherwise as `span`."""
    return f"{duration_ns / 10**6:.3g} ms" if abs(duration_ns) < 10**9 else span(duration_ns)


def explained(account: Mapping[Any, Any], look: Look) -> list[str]:
    """Explains an account's state in sentences, from a reply of `explain`."""
    user = printable(str(account["user_id"]))
    rate = account["rate_nanos_per_hour"]
    lines = rate_lines(account.get("rates") or {})
    spends = f"spends {' and '.join(lines)}" if lines and len(lines) <= 3 else f"spends {coins(rate)} per hour"
    available = f"{user} has {coins(account['available_nanos'])} coins available"
    sentences = []
    if account["state"] == "exhausted":
        when = ran_out(account, look)
        sentences.append(f"{user} has no money left" + (f": it ran out at {when}." if when != NO_MONEY else "."))
        if rate:
            sentences.append(
                f"Its rate of {coins(rate)} per hour is still reported, and is counted as overrun until somebody sets "
                f"it to 0 or adds money: {coins(account.get('overrun_nanos', 0))} coins since the account was opened."
            )
    elif not rate:
        sentences.append(f"{available} and spends nothing, so the money does not run out.")
    elif account["exhausts_at_ns"] is None:
        sentences.append(f"{available} and {spends}; the money {NOT_WITHIN_SIGHT}.")
    else:
        sentences.append(f"{available} and {spends}; the money lasts until {moment(account['exhausts_at_ns'], look)}.")
    if limit := account.get("credit_limit_nanos"):
        sentences.append(f"A credit limit of {coins(limit)} coins is part of that.")
    if held := account.get("holds_nanos"):
        sentences.append(_holds(held, account.get("holds") or [], look))
    if account["state"] == "active" and account.get("cutoff"):
        sentences.append(_before(account, look))
    sentences += _class(account, look)
    sentences.append(_owed(account))
    if "shard_id" in account:
        timer = account.get("timer") or {}
        armed = "its timer is set" if str(timer.get("state", "")).startswith("armed") else "no timer is set for it"
        sentences.append(f"Shard {account['shard_id']} has it, in bucket {account['bucket_id']}; {armed}.")
    return sentences


def lease_told(account: Mapping[Any, Any], ttl_ns: int | None) -> str:
    """A sentence about when a rate that was reported with a time to live ends, which the reply does not contain. Empty
    if there was no time to live, and for a replayed reply, since the time counts from the first request.
    """
    if ttl_ns is None or account.get("replayed"):
        return ""
    return f"This rate goes to 0 after {span(ttl_ns)}, unless it is reported again."


def _before(account: Mapping[Any, Any], look: Look) -> str:
    """A sentence about the last exhaustion of an account that has money again."""
    restored_ns = account["cutoff"].get("restored_at_ns")
    restored = f"; its restore had its 2xx at {moment(restored_ns, look)}" if restored_ns is not None else ""
    return f"It last ran out at {ran_out(account, look)}{restored}."


def _class(account: Mapping[Any, Any], look: Look) -> list[str]:
    """A sentence about the account's cutoff class and its grace; none for the default class without a grace."""
    name, called_ns = account.get("class", DEFAULT_CLASS), account.get("cutoff_at_ns")
    if name == DEFAULT_CLASS and (called_ns is None or account["state"] == "active"):
        return []
    in_class = f"It is in the cutoff class {printable(str(name))}"
    if called_ns is None or called_ns == account["exhausts_at_ns"]:
        return [f"{in_class}."]
    if account["state"] == "exhausted":
        return [f"{in_class}, whose grace is running: the cutoff URL is called at {moment(called_ns, look)}."]
    return [f"{in_class}: the cutoff URL is called at {moment(called_ns, look)}, after its grace."]


def _holds(held_nanos: int, holds: list[Mapping[Any, Any]], look: Look) -> str:
    ends = [hold["expires_at_ns"] for hold in holds if hold.get("expires_at_ns") is not None]
    number = f"in {len(holds)} holds" if len(holds) > 1 else "in one hold"
    first = f", the first of them until {moment(min(ends), look)}" if ends and len(holds) > 1 else ""
    only = f" until {moment(ends[0], look)}" if len(holds) == 1 and ends else ""
    return f"{coins(held_nanos)} coins are held {number}{first}{only}, and are not available."


def _owed(account: Mapping[Any, Any]) -> str:
    owes, why = account.get("owes"), account.get("why")
    if not owes:
        return "No call is owed to the cutoff URL."
    call = f"A {owes['call']} call (seq {owes['seq']}) is owed, after {attempts_of(owes)}"
    return f"{call}. {printable(str(why))}" if why else f"{call}; its worker has not taken it up yet."


class Outcome(NamedTuple):
    """The outcome of a call that was tried again because an operator asked for it."""

    text: str
    is_done: bool  # the endpoint answered with a 2xx, or no call is owed any more


def retried(account: Mapping[Any, Any], look: Look) -> Outcome | None:
    """The outcome of the retried call, from a reply of `explain`; None while the attempt has not ended."""
    user, owes, standing = printable(str(account["user_id"])), account["owes"], account["outbox"] or {}
    cutoff = account.get("cutoff") or {}
    if owes is None:
        restored_ns, delivered_ns = cutoff.get("restored_at_ns"), cutoff.get("delivered_at_ns")
        if account["state"] == "active" and restored_ns is not None:
            return Outcome(f"The restore of {user} had its 2xx at {moment(restored_ns, look)}.", True)
        if delivered_ns is not None:
            return Outcome(f"The cutoff of {user} had its 2xx at {moment(delivered_ns, look)}.", True)
        return Outcome(f"No call is owed for {user} any more.", True)
    if standing.get("failures") and standing["state"] != IN_FLIGHT:
        return Outcome(
            f"The {owes['call']} of {user} failed again. {printable(str(account['why'] or ''))}".rstrip(), False
        )
    return None
