"""The history: projection, store and reader alone; the link with real projector processes; statements and the audit."""
