"""What runs in a worker process beside the shard: the hosted machine, its doors and its outgoing calls."""
