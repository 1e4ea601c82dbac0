"""The only modules that touch the machine: clock, disk, processes, sockets between them, the thread that waits."""
