"""Evaluation through mteb: tasks, models and runs in mteb's forms, scores per query in ours."""
