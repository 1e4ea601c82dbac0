"""Notices: what happened to accounts, told to another service by POST, behind everything else."""
