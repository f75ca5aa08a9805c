"""STM: synthesise hard negatives, train one retrieval expert per data split, merge the experts.

Modules are the phases of the pipeline; nothing is imported here, so that a stage loads only what it uses.
"""
