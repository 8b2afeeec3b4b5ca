"""Which samples are used: one file per selector (none yet; `data.N.limit` and `hold_out` are part of reading)."""
