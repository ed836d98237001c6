"""What the server remembers: rows in a database, content in a store addressed by SHA-256."""
