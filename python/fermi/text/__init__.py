"""Text on either side of the tokens: tokenizer, chat templates, incremental decoding, stop strings, reasoning.

Strings come in and go out here; below lie token ids. Nothing in this package knows a tensor, a model or a server.
"""
