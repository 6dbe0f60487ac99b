"""Hosts together: the keys and the token that make a cluster, and each host's rows on all the others."""
