"""A bucket changes its shard: the state machine of one move, both workers' parts in it, and the rebalancer.

The record of the new owner in the map decides a move, so a bucket has one owner at every instant.

    move        one move, as a state machine (pure)
    mover       moves in the supervisor, carried out
    handoff     a worker's part: giving a bucket away, taking one in
    rebalancer  which buckets should move (pure)
    wanted      moves that were asked for and are not over, in the map's log
"""
