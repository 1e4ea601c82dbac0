"""The main process: worker processes, the map of buckets, and what operators ask about them."""
