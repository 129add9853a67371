"""The database engine: connections, transactions and batched writes."""
