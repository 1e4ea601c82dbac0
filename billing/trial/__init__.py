"""Tools for trying and measuring: the demo, the receiver and the load test.

The daemon itself uses nothing of this room.

    receiver             a cutoff endpoint, which may misbehave; receiver_command: `billing receiver`
    receiver_connection  one connection to the receiver; receiver_call: one call; received_calls: all calls;
                         faults: the ways in which the receiver misbehaves
    arrivals             reads from a running receiver which cutoffs have arrived
    demo                 `billing demo`; demo_scene: the steps of its scene; demo_screen: its output
    loadtest             `billing loadtest`
    own_daemon           a daemon as child process; log_servers: nats-servers; child_processes: any child process;
                         handing_over: starts a program with sockets that its parent bound
"""
