"""One script per DVC stage: parse paths, load one params section, call one core function, write atomically."""
