"""Who corrects: a function, a server, a local model, the policy itself, a person, or stored corrections."""
