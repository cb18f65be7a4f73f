"""The bodies of requests, as OpenAI's specification and vLLM's users know them."""
