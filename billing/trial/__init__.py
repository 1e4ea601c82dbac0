"""For trying and measuring: the demo, the receiver and the load test.

The daemon itself uses nothing of it.

    receiver             a cutoff endpoint, which may misbehave; receiver_command: `billing receiver`
    receiver_connection  one connection to it; receiver_call: one call; received_calls: all of them; faults: how it
                         misbehaves
    arrivals             what a running receiver has received
    demo                 `billing demo`; demo_scene: what happens in it; demo_screen: what it shows
    loadtest             `billing loadtest`
    own_daemon           a daemon as child process; log_servers: nats-servers; child_processes: any such process;
                         handing_over: starts one with sockets that its parent bound
"""
