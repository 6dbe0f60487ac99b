"""Who is in the cluster and who is gone: SWIM with Lifeguard, on memberlist's wire.

`core` decides everything, without I/O, clock or randomness of its own; `node` gives it sockets and a loop. Neither
knows what the user messages mean that they carry.

wire      the message types              envelope   label, seal, checksum, compression, compound of a datagram
stream    the same of a TCP connection   seal, lzw  what those need
core      the protocol's state           probes, suspicion, health, broadcasts, merging: its parts
node      asyncio: UDP, TCP, timers      settings   every knob, and what it does
"""
