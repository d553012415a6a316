"""How bytes travel: connections, channels, messages and queues of the broker."""
