"""Publishing to MLflow, gates, and promotion in the model registry."""
