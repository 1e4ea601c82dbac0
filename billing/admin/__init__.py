"""What operators see over HTTP: the dashboard, /metrics, /readyz and the runbook."""
