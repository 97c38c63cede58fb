"""What each command does, a module or package for each; they do not import each other."""
