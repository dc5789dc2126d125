"""The command `bitsanywhere`, one file a command."""
