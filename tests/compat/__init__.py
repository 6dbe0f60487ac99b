"""Real programs through every transport: `make compat` runs them all and writes docs/compatibility.md."""
