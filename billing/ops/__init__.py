"""What operators meet: the admin server, the receiver for trying, the demo, and what prints."""
