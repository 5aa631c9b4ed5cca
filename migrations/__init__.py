"""The history of the tables: one revision a file under ``versions``, run by Alembic."""
