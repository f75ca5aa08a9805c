"""Prepare: sources of text become training pairs per split and evaluation tasks that have no text in common."""
