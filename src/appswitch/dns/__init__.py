"""DNS: what is answered here (answers), what the host's resolvers are asked (forward), and the message itself."""
