"""The language of recipes: names to classes, settings and their meaning, rules across tables, and costs."""
