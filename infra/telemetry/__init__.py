"""What the service says of itself: logs, and metrics for Prometheus and CloudWatch."""
