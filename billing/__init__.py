"""The application: what is owed, when it runs out, and whom to tell.

Prepaid billing by the second. `billing` imports `shards` (which keeps a state machine alive and knows nothing of
money), never the other way round. Someone who only wants to know how money and time work here reads `billing/ledger/`
and nothing else.

    ledger       accounts, commands and entries: how money and time work here; pure
    expirationd  cutoffs that fall due, and the calls that tell of them
    worker       what runs in a worker process: the two above as the content of a shard's buckets
    api          the doors: MessagePack-RPC, HTTP with JSON, Tarantool's protocol
    client       what other projects import
    follower     a process that follows a shard's journal into an SQLite file
    history      statements, made by such a process
    notices      what happened to accounts, told by POST, by such a process
    audit        the operators' record
    config       the configuration: declared, loaded, reloaded
    service      the main process, where everything is joined; systemd, listeners, logs
    admin        HTTP for operators: the dashboard and /metrics
    cli          the command line and the console
    doctor       proves a data directory with code of its own
    backup       a copy as of one instant, and putting it back
    migration    accounts out of other systems' files
    trial        for trying and measuring: demo, receiver, load test
    addresses    addresses as a configuration has them: where to listen, what to call
    signature    the signatures of calls, made by the daemon and verified by receivers
    svg          plots, of the dashboard and of the load test
"""

__version__ = "0.1.0"
