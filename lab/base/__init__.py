"""How the bundled base model is made."""
