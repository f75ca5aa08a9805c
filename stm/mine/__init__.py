"""Hard negatives from the corpus: candidates, margin, guard against false negatives, judges, statistics."""
