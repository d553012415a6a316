"""What runs, measures and tests UserStream on a machine; nothing of it is part of a service."""
