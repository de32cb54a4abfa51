"""What the service can do. Only this package changes the status of a task."""
