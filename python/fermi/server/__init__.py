"""The HTTP server: OpenAI's API over the engine's service and the text layer."""
