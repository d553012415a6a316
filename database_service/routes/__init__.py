"""HTTP, one module per thing; each validates, asks its repository and answers."""
