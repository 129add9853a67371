"""The pages: HTML made on the server from the same answers that the API gives."""
