"""The load test: it drives a running daemon as its callers do, and judges it from outside by a model of its own.

The model computes the right behaviour with code that it does not share with the ledger.

    command      `billing loadtest`; options: its options; signing_in: the token and TLS of its connections
    target       the daemon under load; session: the runs; sweep: runs at rising rates; chaos: trouble on demand
    workload     the commands to send, drawn by seed; columns: commands and their answers
    trace        traces of real machines; plan: the commands made of a trace; trace_plan: the options of a replay
    generators   all generators together; generator: one generator process; load_driver: sends commands, takes answers
    latency      histograms; skew: billing time against this host's clock; cost: CPU a command; watch: the processes
    verdict      computes the right behaviour independently; assess: compares the answers with it
    validity     whether a measurement is VALID
    result       the result as data; compare: compares two results; conclusion: the meaning of a result, in sentences
    summary      a result as text; report: as HTML; plots: its plots; writing: writes the files; progress: the display
"""
