"""The daemon as a service: the main process, the worker processes, systemd, listeners and logs.

This package builds both kinds of process out of the parts that all other packages offer.

    serve                the main process; beginning: its first steps, before it imports anything else
    supervisor_settings  builds the supervisor's settings from the configuration
    working              a worker process
    service              what runs beside the supervisor: reports to the service manager, and the operators' pages
    acts                 records starts, reloads, drains and stops on the operators' record
    listeners            the sockets that clients connect to
    systemd              the protocols of systemd; unit: `billing install-unit`
    logs                 where log records go; events: the table of all warnings, with the remedy for each
    steady_stream        a stream that blocks nobody who logs
    introduction         the lines that the daemon logs about itself when it starts
"""
