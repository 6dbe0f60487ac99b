"""AppSwitch: programs with an identity of their own, by answering their network control calls.

linux/    one kernel facility a file: seccomp notification, BPF, namespaces, rtnetlink, Landlock, sock_diag …
model/    values and decisions without I/O: identity, service, policy, balance, resolve
table/    the service table: rows and their codec, the LMDB store, counters
dns/      answers from the table, and forwarding to the host's resolvers
relay/    the process at the other end of every program's device
trap/     generator (in the program, before exec), filter, surroundings;
          worker (the loop), program, sockets, parked, delivery,
          calls/ (one file a family of trapped calls), transports/ (unix, tcp, egress, queue)
switch/   supervisor, its keeper and its children, control protocol, run directory, queries
cli/      one file a command

Imports point downward only: cli → switch → trap, relay → dns → table → model → linux.
"""

__version__ = "0.1.0"
