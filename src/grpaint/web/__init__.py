"""HTTP for people and programs: one server with limits, tokens, and the headers of every answer."""
