"""What the services have in common over HTTP: operations, problems, health, documentation."""
