"""The only modules that touch the machine: clocks, disk, processes, sockets between them, the thread that waits.

They are passed in, so that a simulation can pass others.

    clock            wall clock and boot clock, and billing time
    disk             files, and what is durable
    host             these and child processes, as one value that is passed in
    links            frames on the wires between processes
    names            the resolver, which may be silent
    own_thread       work that may block for as long as somebody else is silent
    serial_executor  the one thread that waits for the disk
"""
