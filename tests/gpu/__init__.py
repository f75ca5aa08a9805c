"""Training and encoding on a real GPU; run by `make test-gpu`."""
