"""A reverse proxy that adds Plaid's credentials to the calls of those who hold a key of its own."""
