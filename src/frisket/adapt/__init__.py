"""Which weights move: `where` chooses them, `method` says how they move."""
