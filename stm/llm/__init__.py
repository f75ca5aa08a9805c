"""Chat completions from any OpenAI-compatible endpoint: values, answer store, client, embedded server."""
