"""The pages of the web process, one file for each; what they show they get from the rooms below."""
