"""Text to tokens: reading sources, chat templates with provenance, the token store, the order of a run."""
