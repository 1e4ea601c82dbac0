"""One worker process: recovers its shard, serves it, passes requests on, and takes snapshots meanwhile.

`process` is the process with its control wire; `recovering` and `serving` are its two phases; `worker` is the loop
around a shard that is served; `hosting` says what an application must be able to do, and what it has of the worker.
"""
