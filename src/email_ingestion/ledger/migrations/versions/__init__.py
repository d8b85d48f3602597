"""One module for each revision; a published revision never changes."""
