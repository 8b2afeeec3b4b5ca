"""Which tokens see which: the dense meaning, packing, and backends that equal it."""
