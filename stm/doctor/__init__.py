"""`stm doctor`: whether this machine and this checkout can run the pipeline, and what is missing."""
