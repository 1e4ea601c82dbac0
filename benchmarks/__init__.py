"""Measurements: one command each. They print figures and do not judge them, except where a module says so. See
RESULTS.md.
"""
