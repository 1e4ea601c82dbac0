"""The harness: drives a running daemon as its callers do and judges it from outside, by a model of its own."""
