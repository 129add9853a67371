"""HTTP: middleware, and one module of routes for each noun."""
