"""LLM-written hard negatives: prompt, validation with reasons, regeneration, report."""
