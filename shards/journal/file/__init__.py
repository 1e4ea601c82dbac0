"""The journal as local files: segments, snapshots, and their recovery."""
