"""Search of query instructions: generic pools written by an LLM, and GEPA on dev nDCG@10."""
