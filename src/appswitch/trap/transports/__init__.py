"""How a connect() that may go through is carried out: over a Unix pair, over TCP on this host, or out of the table.

Each file has one way; all of them work on an `Attempt`.
"""
