"""HTTP for operators: the dashboard, /metrics, /readyz and the runbook.

This room only reads: none of its requests changes anything. It runs in the main process, beside the supervisor.

    server          the HTTP server and its routes; visits: limits the number and the silence of its connections
    figure_sampler  asks every worker for its figures once a second, and keeps them
    worker_queries  asks workers for data of accounts: one account, owed cutoffs, coming cutoffs
    metrics         the sampler's figures in Prometheus' format
    page            the dashboard
    alerts          the table of alerts (`alerts.toml`), as Prometheus' rules and as the runbook
    grafana         Grafana's dashboard; monitoring: the command that prints it, the rules and the runbook
    processes       the CPU time, memory and descriptors of the daemon's processes
    recent          the last warnings that were logged
"""
