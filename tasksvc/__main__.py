"""`python -m tasksvc`."""

from tasksvc.cli.main import main

if __name__ == "__main__":
    main(prog_name="tasksvc")
