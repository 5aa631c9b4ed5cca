"""Keep repeats and spreads of candidates, and evaluations that are not for everybody."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "owners",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("shares", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_owners"),
    )
    # Null is possible in all of them: SQLite would have to build anew what others refer to.
    op.add_column("evaluations", sa.Column("scope", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("shares", sa.Boolean(), nullable=True))
    op.add_column("candidates", sa.Column("spread", sa.JSON(), nullable=True))
    op.add_column("candidates", sa.Column("repeats", sa.BigInteger(), nullable=True))
    op.execute("UPDATE candidates SET repeats = 1 WHERE state = 'evaluated'")


def downgrade() -> None:
    op.drop_column("candidates", "repeats")
    op.drop_column("candidates", "spread")
    op.drop_column("jobs", "shares")
    # What only some may find must not become everybody's.
    op.execute("DELETE FROM evaluations WHERE scope IS NOT NULL")
    op.drop_column("evaluations", "scope")
    op.drop_table("owners")
