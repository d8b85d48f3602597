"""`/api/v1`: delivered mail and the state of the system as JSON, for programs with a token."""
