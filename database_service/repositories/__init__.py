"""SQL, one module per thing; each statement stands above the method that runs it."""
