"""What each process does from time to time: one duty in each file."""
