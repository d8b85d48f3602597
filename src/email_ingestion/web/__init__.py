"""The web process: pages for people and the read API for programs; it may be away without harm."""
