"""The daemon as a service: where everything is joined, systemd, listeners and logs."""
