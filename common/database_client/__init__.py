"""The client of database_service: ``client`` is what services use."""
