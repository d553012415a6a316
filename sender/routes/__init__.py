"""What people and programs ask the sender, one module for each thing."""
