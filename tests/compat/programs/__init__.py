"""One file a program: how its servers and clients are started."""
