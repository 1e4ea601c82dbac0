"""The daemon as a service: where everything is joined, systemd, listeners and logs.

The main process and the worker processes are put together here, of what all other packages offer.

    serve                the main process; beginning: its first steps, before it imports anything else
    supervisor_settings  what the supervisor needs of the configuration
    working              a worker process
    service              what is told to the service manager and shown to operators while the supervisor runs
    acts                 starts, reloads, drains and stops, on the operators' record
    listeners            the sockets that clients connect to
    systemd              the protocols of systemd; unit: `billing install-unit`
    logs                 where log records go; events: every warning there is, and what to do
    introduction         what the daemon says of itself when it starts
"""
