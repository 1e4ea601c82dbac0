"""The history: projection, store and shelf alone; the link with real projector processes; statements and the audit."""
