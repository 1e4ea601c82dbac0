"""The application: what is owed, when it runs out, and whom to tell.

Prepaid billing by the second. `billing` imports `shards` (which keeps a state machine alive and knows nothing of
money), never the other way round. Someone who only wants to know how money and time work here reads `billing/ledger/`
and nothing else.

    ledger       accounts, commands and entries: how money and time work here; pure
    expirationd  cutoffs that fall due, and the HTTP calls that report them
    worker       what runs in a worker process: `ledger` and `expirationd` as the content of a shard's buckets
    api          how clients connect: MessagePack-RPC, HTTP with JSON, Tarantool's protocol
    client       the Python client, which other projects import
    follower     a process that copies what it needs of a shard's journal into an SQLite file
    history      a follower that keeps the statements of accounts
    notices      a follower that reports events of accounts by HTTP POST
    audit        the record of what operators did
    config       the configuration: declared, loaded, reloaded
    service      the main process, which starts and joins all parts; systemd, listeners, logs
    admin        HTTP for operators: the dashboard and /metrics
    cli          the command line and the console
    doctor       checks a data directory with a second implementation of ledger and formats
    backup       makes a copy of the data as of one instant, and restores it
    migration    imports accounts from files of other systems
    trial        tools for trying and measuring: demo, receiver, load test
    addresses    the addresses in a configuration: where to listen, what to call
    signature    the signatures of calls: the daemon makes them, receivers verify them
    svg          the plots of the dashboard and of the load test
"""

__version__ = "0.1.0"
