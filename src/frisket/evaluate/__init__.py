"""What was learned and what was forgotten, with intervals."""
