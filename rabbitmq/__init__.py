"""The broker's configuration, the same for compose and for the launcher."""
