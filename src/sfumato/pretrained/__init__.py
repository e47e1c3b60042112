"""Models from outside: small protocols, and one file per kind of backend."""
