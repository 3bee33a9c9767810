"""What servers load: vaccel behind the plug-in points of theirs, one file a host."""
