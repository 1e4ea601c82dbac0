"""The configuration: every key declared once, loaded, checked as one, and reloaded."""
