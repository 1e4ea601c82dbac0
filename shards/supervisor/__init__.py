"""The main process: worker processes, the map of buckets, and what operators ask about them.

It serves no request itself: it starts and ends workers, and decides who owns what.

    supervisor        joins the others, and runs the daemon's life; settings: what it needs of the configuration
    registry          the map, durably; lost_map: a start without one
    worker_processes  which workers there are; child_process: one of them; restart_policy: when it is started again
    briefing          what workers are told; admission: from a worker's start to its serving; spares: loaded ahead
    retirement        drained shards are let go
    operator_api      an operator's questions and orders; worker_figures: asks workers; unserved: what is not served
    ownership         whether each bucket has one owner, on whatever host
    billing_time      billing time, where it begins; clock_guard: whether this host's clock will do; clock_watch: looks
    standby           where hosts take turns: when one may take over
    placement         where several serve at once: which host is to serve which shard; owners: by the map's log
    sharing           what of that is due, carried out; far_side: moves between hosts
    background        tasks that nobody waits for
"""
