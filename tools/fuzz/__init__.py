"""Fuzzing of everything that reads what strangers or other hosts sent; `make fuzz`."""
