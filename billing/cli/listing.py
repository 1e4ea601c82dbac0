"""The list of commands: name, module and one line of help, so that `billing --help` imports none of these modules.

A command that is built from a row of the table of methods (`method_commands`) takes its help from this list. A test
checks that the short help of every other command equals its line in this list.
"""

from __future__ import annotations

from typing import Final

# Module -> its commands, each with its one line of help.
ELSEWHERE: Final[dict[str, dict[str, str]]] = {
    "billing.cli.account_commands": {
        "top-up": "Adds AMOUNT coins to USER; opens the account if it is new.",
        "set-rate": "Sets how fast USER's money is being spent: RATE coins a second, or as --per says.",
        "change-rate": "Adds DELTA coins a second, or as --per says, to a rate of USER; below zero it is refused.",
        "debit": "Takes AMOUNT coins from USER once.",
        "account": "Shows everything about USER now, or the balance at a past instant.",
        "balance-at": "Shows the balance and the rate of USER as they were at an instant, such as 2026-11-30T12:00.",
        "accounts": "Lists accounts in order of their user ids: state, money, rate, and when it runs out.",
        "history": "Lists what happened to USER, newest first.",
        "credit-limit": "Sets how far below zero USER may go: AMOUNT coins.",
        "hold": "Reserves AMOUNT coins of USER; the reply names the hold.",
        "capture": "Takes AMOUNT coins of a hold of USER and frees the rest.",
        "release": "Gives a hold of USER back.",
        "adjust": "Corrects USER's balance by AMOUNT coins, with a REASON.",
        "thresholds": "Sets when notices about USER's low balance are sent, in place of what was set.",
        "class": "Puts USER in the cutoff class NAME of the configuration; default takes him out of any.",
        "close": "Closes USER's account and pays out the rest; asks first.",
    },
    "billing.cli.statement_command": {
        "statement": "Shows USER's opening balance, entries and closing balance, and that they add up.",
    },
    "billing.cli.operator_commands": {
        "shards": "Lists the shards: process, buckets, accounts, load, and what is wrong.",
        "buckets": "Lists the buckets and their owners, or moves and pins them.",
        "rebalance": "Moves buckets until the load is even.",
        "explain": "Tells in sentences why USER stands where it stands; with --wide the fields, too.",
        "explain-move": "Shows what a move of BUCKET (to SHARD) waits for, and which worker holds it up.",
        "cutoffs": "Lists the cutoffs that are owed, or tries and releases them.",
        "forecast": "Tells how many cutoffs are coming, by the second or minute, and the worst second.",
        "expirationd": "Shows the timers that find accounts running out, as Tarantool's expirationd; also: timers.",
        "methods": "Lists the procedures of the daemon and what they take; of NAME, everything about it.",
        "ping": "Asks whether the daemon answers.",
        "info": "Shows the daemon's version and limits.",
    },
    "billing.admin.monitoring": {"monitoring": "Prints alert rules, the Grafana dashboard, and what each alert means."},
    "billing.service.unit": {"install-unit": "Prints the systemd unit for a configuration."},
    "billing.cli.token_commands": {"token": "Makes, lists and revokes the tokens by which callers sign in."},
    "billing.cli.completion_command": {"completion": "Prints what makes SHELL complete commands and options."},
    "billing.cli.console.session": {
        "console": "A prompt for all procedures, with history, completion and a live view; nothing is evaluated.",
    },
    "billing.cli.export_command": {"export": "Writes all entries or all accounts as lines of JSON or as CSV."},
    "billing.cli.audit_command": {
        "audit": "Lists what operators asked for, granted or not (moves, backups, …), and refused sign-ins.",
    },
    "billing.cli.reconcile_command": {
        "reconcile": "Compares machines (INVENTORY, a CSV of user,resource[,rate]) with the rates that are charged.",
    },
    "billing.migration.command": {
        "import": "Opens accounts with the balances, credit limits and rates that FILES name.",
    },
    "billing.backup.command": {
        "backup": "Copies all data as of one instant to the new DIRECTORY, while the daemon serves.",
        "restore": "Makes the configured data directory, which must be empty, from the backup in DIRECTORY.",
    },
    "billing.backup.rebuild": {
        "rebuild": "Makes history and notices again from the journal, and from what is good in their files."
    },
    "billing.trial.demo": {"demo": "Starts a daemon of its own and shows what it does, with three users."},
    "billing.trial.loadtest.options": {
        "loadtest": "Offers a load to a daemon, measures what callers see, and judges every nano and every cutoff.",
    },
    "billing.trial.receiver_command": {
        "receiver": "Takes cutoff calls for trying and measuring, and says how late they came.",
    },
    "billing.cli.journal_dump": {"journal": "Looks into the files of a journal."},
    "billing.cli.cluster_commands": {
        "cluster": "Looks at the servers and hosts of a replicated log, and makes its streams.",
    },
    "billing.doctor.command": {"doctor": "Proves from what is stored alone that a stopped daemon's data are right."},
}
MODULE_OF: Final = {name: module for module, commands in ELSEWHERE.items() for name in commands}
HELP: Final = {name: text for commands in ELSEWHERE.values() for name, text in commands.items()}

# The sections of `--help`; commands that are not named here stand in the last one.
SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "Accounts": (*ELSEWHERE["billing.cli.account_commands"], "statement"),
    "Operation": (
        *("serve", "config", "token", "completion", "console", "install-unit", "monitoring", "import", "export"),
        *("audit", "reconcile", "backup", "restore", "rebuild", "journal", "cluster", "doctor"),
        *ELSEWHERE["billing.cli.operator_commands"],
    ),
    "Trying and measuring": ("demo", "receiver", "loadtest"),
}
