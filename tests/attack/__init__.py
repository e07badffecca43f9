"""What one client, or the service's user, can do to the others: each attack as a property or a generator."""
