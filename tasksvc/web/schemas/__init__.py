"""What comes in and what goes out: shapes and limits."""
