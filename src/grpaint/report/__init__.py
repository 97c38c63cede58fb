"""What people see of a run: tables on the terminal, pictures, and HTML pages."""
