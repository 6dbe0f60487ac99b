"""Who calls, at the head of a TCP stream between hosts. Pure: bytes in, values or a `Refused` out."""
