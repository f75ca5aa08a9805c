"""Merging of experts: deltas combined by a method of one table, coefficients searched on dev, the winner written."""
