"""Ways to compute the attention that `attend.reference` defines."""
