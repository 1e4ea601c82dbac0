"""For trying and measuring: the demo, the receiver and the load test."""
