"""A bucket changes its shard: the state machine of one move, both workers' parts in it, and the rebalancer."""
