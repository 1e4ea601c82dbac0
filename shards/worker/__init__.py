"""One worker process: recovers its shard, serves it, passes requests on, and takes snapshots meanwhile.

`process` is the process with its control wire; `recovering` and `serving` are its two phases; `worker` is the loop
around a shard that is served; `hosting` is the interface between an application and its worker.
"""
