"""The harness: drives a running daemon as its callers do and judges it from outside, by a model of its own.

What is right is worked out a second time, by code that the ledger shares nothing with.

    command      `billing loadtest`; options: its options; signing_in: how the daemon is called
    target       the daemon under load; session: run after run of it; sweep: at rising rates; chaos: trouble on demand
    workload     what is asked, drawn by seed; columns: commands and their answers
    trace        traces of real machines; plan: what they become; trace_plan: the share of each generator in that
    generators   all generators; generator: one of these processes; load_driver: sends, and takes the answers
    latency      histograms; skew: the clocks of the daemon and of this host; cost: CPU; watch: the daemon's processes
    verdict      the right behaviour, worked out independently; assess: the answers, held against that
    validity     whether a measurement is worth anything
    result       all of it as data; compare: two of these; conclusion: what one means
    summary      in words; report: in HTML; plots: its plots; writing: the files; progress: while it runs
"""
