"""Alembic's entry point: runs the revisions in the given connection's transaction."""

from alembic import context

from markscheme_server.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
