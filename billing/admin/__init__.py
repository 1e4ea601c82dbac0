"""What operators see over HTTP: the dashboard, /metrics, /readyz and the runbook.

It only reads: no request here changes anything. It runs in the main process, beside the supervisor.

    server          the HTTP server, and what it answers; visits: its connections, which are few
    figure_sampler  asks every worker for its figures once a second, and keeps them
    worker_queries  asks workers what only they know: an account, what is owed, what is coming
    metrics         those figures in Prometheus' format
    page            the dashboard
    alerts          the table of alerts (`alerts.toml`), as Prometheus' rules and as the runbook
    grafana         the dashboard of Grafana; monitoring: the command that prints it, and the rules
    processes       what the daemon's processes use of the machine
    recent          the last warnings that were logged
"""
