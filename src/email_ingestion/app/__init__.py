"""Builds the objects of one process and runs it; the only room that knows all the others."""
