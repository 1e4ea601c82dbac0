"""Measurements: one command each; they print figures and never judge. See RESULTS.md."""
